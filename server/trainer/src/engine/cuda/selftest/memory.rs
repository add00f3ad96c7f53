//! What a run's phases leave in the GPU's memory, as the driver counts it.

use std::sync::Arc;

use super::{Check, Result, instructions::ADAM, networks, noise};
use crate::engine::{
    builder::{Bias, Builder, Scope},
    cuda::{
        call::Element,
        device::Device,
        session::{CudaSession, Settings},
    },
    ir::{Group, Kind, ParamId, ParamTable, Program, Window},
    nets::vae,
    session::{Data, Session},
};

/// Side of what is decoded, in latents; its activations are some hundred MiB.
const SIDE: usize = 512;
const MIB: f64 = (1 << 20) as f64;

pub(super) fn check(device: &Arc<Device>, element: Element, report: &mut dyn FnMut(Check)) -> Result<()> {
    let mut table = ParamTable::default();
    let [large, small] = [SIDE, SIDE / 4].map(|side| decoding(&mut table, side));
    let (large, small) = (large?, small?);
    let settings = Settings {
        element,
        optimizer: ADAM,
        eager: false,
        poison: false,
    };
    let mut session = CudaSession::new(table.clone(), settings, device)?;
    for (index, param) in table.params.iter().enumerate() {
        let values: Vec<f32> = noise(param.len(), index as u64)
            .iter()
            .map(|value| 0.2 * value)
            .collect();
        session.set_weight(ParamId(index as u32), &values)?;
    }
    let [visit, goes_on] = [large, small].map(|program| session.compile(program));
    let (visit, goes_on) = (visit?, goes_on?);
    let z = noise(SIDE * SIDE * 4, 1);
    let few = &z[..SIDE * SIDE / 4];
    let draw = |session: &mut CudaSession, program, z: &[f32]| -> Result<Vec<f32>> {
        // Once by itself, once recorded.
        for _ in 0..2 {
            session.write(program, "z", Data::F32(z))?;
            session.run(program)?;
        }
        Ok(session.read(program, "output")?)
    };
    let mut figures = Vec::new();
    let mut images = Vec::new();
    for _ in 0..2 {
        images.push(draw(&mut session, visit, &z)?);
        let (during, held) = (device.used_bytes()?, session.held_by_programs());
        session.release(&[])?;
        figures.push((during, held, device.used_bytes()?));
    }
    let [(_, _, first), (during, held, second)] = figures[..] else {
        return Ok(());
    };
    let mut tell = |name: &str, error: f64, tolerance: f64| {
        report(Check {
            name: format!("{} memory: {name}", element.suffix()),
            error,
            tolerance,
        });
    };
    tell(
        "a phase that comes again leaves nothing behind, MiB",
        second.abs_diff(first) as f64 / MIB,
        2.,
    );
    // The driver gives 2 MiB at a time, and keeps a recording besides.
    let given_back = during.saturating_sub(second);
    tell(
        "what programs held was given back, MiB off",
        given_back.abs_diff(held) as f64 / MIB,
        16.,
    );
    tell(
        "a program that is used again gives the same bits",
        f64::from(u8::from(images[0] != images[1])),
        0.,
    );

    let before = draw(&mut session, goes_on, few)?;
    let small_holds = session.held_by_programs();
    draw(&mut session, visit, &z)?;
    session.release(&[goes_on])?;
    let after = draw(&mut session, goes_on, few)?;
    let left = session.held_by_programs().abs_diff(small_holds);
    tell(
        "a visitor's memory is given back while another program goes on, MiB",
        left as f64 / MIB,
        0.,
    );
    tell("and that gives the same bits", f64::from(u8::from(before != after)), 0.);
    Ok(())
}

fn decoding(table: &mut ParamTable, side: usize) -> Result<Program> {
    let mut b = Builder::new(table);
    let z = b.input("z", &[1, side, side, 4], Kind::F32);
    let z = b.cast(z, Kind::Activation);
    let (kernel, stride, before, after) = (3, 1, 1, 1);
    let window = Window {
        kernel,
        stride,
        before,
        after,
    };
    let scope = Scope::new("vae", Group::Vae, false);
    let deep = b.conv(z, &scope.at("deep"), 16, window, Bias::Own, None);
    let image = vae::decode_up(&mut b, &networks::vae_config()?, deep, &scope)?;
    let image = b.cast(image, Kind::F32);
    b.output("output", image);
    Ok(b.finish()?.program)
}
