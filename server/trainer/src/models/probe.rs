//! Looks into a forward pass: what each named module puts out, for golden tests and for features.

use candle_core::Tensor;

/// Gets a module's path and its output.
type Observer<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// Hands the outputs of modules to an observer, with their path; off, it costs next to nothing.
pub struct Probe<'a> {
    observer: Option<&'a mut Observer<'a>>,
    path: String,
}

impl<'a> Probe<'a> {
    pub fn off() -> Probe<'static> {
        Probe {
            observer: None,
            path: String::new(),
        }
    }

    pub fn new(observer: &'a mut dyn FnMut(&str, &Tensor)) -> Self {
        Probe {
            observer: Some(observer),
            path: String::new(),
        }
    }

    /// The probe inside module `name`.
    pub fn at(&mut self, name: impl std::fmt::Display) -> Probe<'_> {
        let path = if self.observer.is_some() {
            self.join(&name.to_string())
        } else {
            String::new()
        };
        match &mut self.observer {
            Some(observer) => Probe {
                observer: Some(&mut **observer),
                path,
            },
            None => Probe { observer: None, path },
        }
    }

    /// The output of module `name`; the empty name means this module itself.
    pub fn see(&mut self, name: &str, output: &Tensor) {
        if self.observer.is_none() {
            return;
        }
        let path = self.join(name);
        if let Some(observer) = &mut self.observer {
            observer(&path, output);
        }
    }

    fn join(&self, name: &str) -> String {
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{name}", self.path),
        }
    }
}
