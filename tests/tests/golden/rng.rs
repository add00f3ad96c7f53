//! First latents against torch's CPU generator.

use serde::Deserialize;
use trainer::noise::TorchGenerator;

#[derive(Deserialize)]
struct File {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    Normals(Normals),
    Integers {
        seed: u64,
        op: String,
        values: serde_json::Value,
    },
}

#[derive(Deserialize)]
struct Normals {
    seed: u64,
    shape: Vec<usize>,
    first: Vec<f32>,
    last: Vec<f32>,
    sum: f64,
    sumsq: f64,
    then_randn3: Vec<f32>,
    then_randint5_1000: Vec<u32>,
}

#[test]
fn a_seed_gives_the_noise_that_torch_gives() -> anyhow::Result<()> {
    let file: File = serde_json::from_slice(&std::fs::read(super::dir().join("rng/torch_cpu.json"))?)?;
    assert!(!file.rows.is_empty());
    for row in file.rows {
        let row = match row {
            Row::Normals(row) => row,
            Row::Integers { seed, op, values } => {
                let mut generator = TorchGenerator::new(seed);
                if op == "randperm(12)" {
                    let wanted: Vec<usize> = serde_json::from_value(values)?;
                    assert_eq!(generator.permutation(12), wanted, "seed {seed} {op}");
                } else {
                    let wanted: Vec<Vec<u32>> = serde_json::from_value(values)?;
                    for wanted in wanted {
                        assert_eq!(generator.integers(1000, wanted.len()), wanted, "seed {seed} {op}");
                    }
                }
                continue;
            }
        };
        let name = format!("seed {} shape {:?}", row.seed, row.shape);
        let mut generator = TorchGenerator::new(row.seed);
        let count: usize = row.shape.iter().product();
        let values = generator.normals(count);
        near(&name, &values[..row.first.len()], &row.first);
        near(&name, &values[count - row.last.len()..], &row.last);
        let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
        let sumsq: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        // Every value may be 1e-7 off, in either direction.
        assert!((sum - row.sum).abs() <= 1e-7 * count as f64 + 1e-6, "{name}: sum {sum}");
        assert!((sumsq - row.sumsq).abs() <= 1e-6 * row.sumsq, "{name}: {sumsq}");
        near(&name, &generator.normals(3), &row.then_randn3);
        assert_eq!(generator.integers(1000, 5), row.then_randint5_1000, "{name}");
    }
    Ok(())
}

#[track_caller]
fn near(name: &str, got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len(), "{name}");
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let within = (got - wanted).abs() <= 1e-6;
        assert!(within, "{name}, value {i}: {got} is not {wanted}");
    }
}
