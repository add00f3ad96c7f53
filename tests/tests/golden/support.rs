//! What the golden tests share: reading the reference data, comparing so that NaN fails, printing a table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;

pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of `file`, a path inside the golden folder.
pub fn load(file: impl AsRef<Path>) -> Tensors {
    let path = found(file.as_ref());
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu);
    tensors
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into_iter()
        .collect()
}

/// A JSON file inside the golden folder.
pub fn json<T: DeserializeOwned>(file: impl AsRef<Path>) -> T {
    let path = found(file.as_ref());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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
pub fn relmax_named(got: &Tensor, golden: &Tensors, name: &str) -> f64 {
    if let Some(want) = golden.get(name) {
        return relmax(got, want);
    }
    let want = golden
        .get(&format!("{name}#stride7"))
        .unwrap_or_else(|| panic!("no golden `{name}`"));
    let kept: Vec<f64> = values(got).into_iter().step_by(7).collect();
    relmax_values(&kept, &values(want))
}

/// Collects comparisons, prints them, and fails on the ones that are off.
pub struct Table {
    title: &'static str,
    rows: Vec<(String, f64, f64)>,
}

impl Table {
    pub fn new(title: &'static str) -> Self {
        Self { title, rows: vec![] }
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
        println!("\n{}: {compared} compared", self.title);
        println!("{:<64} {:>10} {:>10}", "item", "error", "tolerance");
        for (item, error, tolerance) in rows.iter().take(SHOWN) {
            println!("{item:<64} {error:>10.2e} {tolerance:>10.0e}");
        }
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
