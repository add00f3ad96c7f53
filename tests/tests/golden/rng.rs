//! First latents against torch's CPU generator.

use serde::Deserialize;
use serde::de::IgnoredAny;
use trainer::noise::TorchGenerator;

use super::support::{Table, json, relative, worse};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Who made it, and how.
    #[serde(rename = "torch")]
    _torch: IgnoredAny,
    #[serde(rename = "note")]
    _note: IgnoredAny,
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
#[serde(deny_unknown_fields)]
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
    let file: File = json("rng/torch_cpu.json");
    let mut table = Table::new("torch's generator");
    for row in file.rows {
        let row = match row {
            Row::Normals(row) => row,
            Row::Integers { seed, op, values } => {
                let mut generator = TorchGenerator::new(seed);
                let item = format!("seed {seed} {op}");
                if op == "randperm(12)" {
                    let wanted: Vec<usize> = serde_json::from_value(values)?;
                    table.equal(item, &generator.permutation(12), &wanted);
                } else {
                    let wanted: Vec<Vec<u32>> = serde_json::from_value(values)?;
                    let got: Vec<Vec<u32>> = wanted
                        .iter()
                        .map(|wanted| generator.integers(1000, wanted.len()))
                        .collect();
                    table.equal(item, &got, &wanted);
                }
                continue;
            }
        };
        let name = format!("seed {} shape {:?}", row.seed, row.shape);
        let mut generator = TorchGenerator::new(row.seed);
        let count: usize = row.shape.iter().product();
        let values = generator.normals(count);
        let mut near = |what: &str, got: &[f32], wanted: &[f32]| {
            assert_eq!(got.len(), wanted.len(), "{name}");
            let apart = got
                .iter()
                .zip(wanted)
                .map(|(got, wanted)| f64::from((got - wanted).abs()));
            table.check(format!("{name} {what}"), apart.fold(0.0, worse), 1e-6);
        };
        near("first", &values[..row.first.len()], &row.first);
        near("last", &values[count - row.last.len()..], &row.last);
        near("three more", &generator.normals(3), &row.then_randn3);
        let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
        let sumsq: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        // Every value may be 1e-7 off, in either direction.
        table.check(format!("{name} sum"), (sum - row.sum).abs(), 1e-7 * count as f64 + 1e-6);
        table.check(format!("{name} sum of squares"), relative(sumsq, row.sumsq), 1e-6);
        table.equal(
            format!("{name} integers"),
            &generator.integers(1000, 5),
            &row.then_randint5_1000,
        );
    }
    table.finish();
    Ok(())
}
