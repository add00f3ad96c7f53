//! What the golden tests share: reading the reference data, comparing so that NaN fails, printing a table.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Index;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;

pub type Tensors = BTreeMap<String, Tensor>;

/// Tensors of the reference data for a test to compare with. All that is the test's to compare with must have been
/// looked up when it is dropped, so that no number lies there that nobody looks at.
pub struct Golden {
    file: String,
    tensors: Tensors,
    looked_up: RefCell<BTreeSet<String>>,
    /// How names begin that are this test's.
    starts: &'static [&'static str],
}

/// The tensors of `file`, a path inside the golden folder; one test compares with all of them.
pub fn load(file: &str) -> Golden {
    Golden::new(file, &[""])
}

/// Of a file that several tests share, what is `part`'s in coverage.rs.
pub fn part_of(file: &str, part: &str) -> Golden {
    Golden::new(file, super::coverage::starts_of(file, part))
}

/// The same without the duty: what a test looks at besides, and others compare with.
pub fn peek(file: &str) -> Golden {
    Golden::new(file, &[])
}

/// Weights and inputs: nothing is looked after, whose comparison is another test's.
pub fn inputs(file: &str) -> Tensors {
    safetensors(&found(file.as_ref()))
}

fn safetensors(path: &Path) -> Tensors {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu);
    tensors
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into_iter()
        .collect()
}

impl Golden {
    /// Of the repository's own set, whatever set the others compare with; without the duty.
    pub fn own(file: &str) -> Self {
        Self::of(file, safetensors(&super::own_dir().join(file)), &[])
    }

    fn new(file: &str, starts: &'static [&'static str]) -> Self {
        Self::of(file, inputs(file), starts)
    }

    fn of(file: &str, tensors: Tensors, starts: &'static [&'static str]) -> Self {
        Self {
            file: file.to_owned(),
            tensors,
            looked_up: RefCell::default(),
            starts,
        }
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let found = self.tensors.get(name);
        if found.is_some() {
            self.looked_up.borrow_mut().insert(name.to_owned());
        }
        found
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Names of its part that were not looked up.
    fn left(&self) -> Vec<&String> {
        let looked_up = self.looked_up.borrow();
        let mine = |name: &&String| self.starts.iter().any(|start| name.starts_with(start));
        let left = self.names().filter(mine).filter(|name| !looked_up.contains(*name));
        left.collect()
    }
}

impl Index<&str> for Golden {
    type Output = Tensor;
    fn index(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("{}: no `{name}`", self.file))
    }
}

impl Drop for Golden {
    fn drop(&mut self) {
        let left = self.left();
        // A test that failed has said why.
        if !std::thread::panicking() {
            assert!(left.is_empty(), "{}: nothing was compared with {left:?}", self.file);
        }
    }
}

/// A JSON file inside the golden folder.
pub fn json<T: DeserializeOwned>(file: impl AsRef<Path>) -> T {
    json_text(&file, |text| text)
}

/// The same, of a text that is changed first.
pub fn json_text<T: DeserializeOwned>(file: impl AsRef<Path>, change: impl FnOnce(String) -> String) -> T {
    let path = found(file.as_ref());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&change(text)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn found(file: &Path) -> PathBuf {
    let item = file.iter().next().unwrap_or_default();
    let rest: PathBuf = file.iter().skip(1).collect();
    let item = super::dir_of(&item.to_string_lossy());
    if rest.as_os_str().is_empty() {
        item
    } else {
        item.join(rest)
    }
}

/// All values, in f64, row-major.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The larger one, and NaN if either is.
pub fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// `max|got - want| / max|want|`; NaN or infinite wherever anything is.
pub fn relmax(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims(), "shapes differ");
    relmax_values(&values(got), &values(want))
}

pub fn relmax_values(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let difference = got
        .iter()
        .zip(want)
        .map(|(got, want)| (got - want).abs())
        .fold(0., worse);
    difference / want.iter().map(|value| value.abs()).fold(0., worse)
}

/// `|got - want| / |want|` in the L2 norm.
pub fn rel_l2(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let difference: f64 = got.iter().zip(want).map(|(got, want)| (got - want).powi(2)).sum();
    difference.sqrt() / l2(want)
}

pub fn l2(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// `|got - want| / |want|` of two numbers.
pub fn relative(got: f64, want: f64) -> f64 {
    (got - want).abs() / want.abs()
}

/// Compares with the golden tensor `name` or with its `name#stride7`, of which every 7th value is kept.
pub fn relmax_named(got: &Tensor, golden: &Golden, name: &str) -> f64 {
    if let Some(want) = golden.get(name) {
        return relmax(got, want);
    }
    let want = golden
        .get(&format!("{name}#stride7"))
        .unwrap_or_else(|| panic!("no golden `{name}`"));
    let kept: Vec<f64> = values(got).into_iter().step_by(7).collect();
    relmax_values(&kept, &values(want))
}

/// To the terminal itself: what `println!` prints is kept from whoever runs tests that pass.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Collects comparisons, prints them, and fails on the ones that are off.
pub struct Table {
    title: String,
    rows: Vec<(String, f64, f64)>,
}

impl Table {
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            rows: vec![],
        }
    }

    /// For what must be equal: 0 or 1 against 0.
    pub fn equal<T: PartialEq>(&mut self, item: impl Into<String>, got: &T, want: &T) {
        self.check(item, f64::from(u8::from(got != want)), 0.0);
    }

    /// `error` must be at most `tolerance`; NaN never is.
    pub fn check(&mut self, item: impl Into<String>, error: f64, tolerance: f64) {
        self.rows.push((item.into(), error, tolerance));
    }

    /// Prints the table (all rows when there are few, else the worst) and panics when a row is off.
    pub fn finish(self) {
        const SHOWN: usize = 80;
        let mut rows = self.rows;
        assert!(!rows.is_empty(), "{}: nothing was compared", self.title);
        let compared = rows.len();
        if compared > SHOWN {
            // NaN sorts as the worst.
            rows.sort_by(|a, b| (b.1 / b.2).total_cmp(&(a.1 / a.2)));
        }
        let mut text = format!("\n{}: {compared} compared", self.title);
        if compared > SHOWN {
            write!(text, "; the worst {SHOWN}:").unwrap();
        }
        write!(text, "\n{:<64} {:>10} {:>10}\n", "item", "error", "tolerance").unwrap();
        for (item, error, tolerance) in rows.iter().take(SHOWN) {
            writeln!(text, "{item:<64} {error:>10.2e} {tolerance:>10.0e}").unwrap();
        }
        print(&text);
        // Not `error > tolerance`, which NaN would pass.
        let off: Vec<_> = rows
            .iter()
            .filter(|(_, error, tolerance)| error.partial_cmp(tolerance).is_none_or(|o| o.is_gt()))
            .collect();
        assert!(
            off.is_empty(),
            "{}: {} of {compared} are off: {off:?}",
            self.title,
            off.len()
        );
    }
}

#[test]
fn a_tensor_that_no_test_looks_at_is_an_error() {
    let golden = load("train/noise_schedule.safetensors");
    for name in ["alphas", "betas"] {
        assert_eq!(golden[name].dims(), [1000]);
    }
    assert_eq!(golden.left(), ["alphas_cumprod", "snr"]);
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(golden)));
    let said = dropped.unwrap_err();
    assert!(said.downcast_ref::<String>().unwrap().contains("alphas_cumprod"));
}

#[test]
fn a_nan_is_never_within_tolerance() {
    let nan = Tensor::new(&[1f32, f32::NAN], &Device::Cpu).unwrap();
    let one = Tensor::new(&[1f32, 1.], &Device::Cpu).unwrap();
    assert!(relmax(&nan, &one).is_nan());
    let off = std::panic::catch_unwind(|| {
        let mut table = Table::new("a table that must fail");
        table.check("nan", f64::NAN, 1.);
        table.finish();
    });
    assert!(off.is_err());
}
