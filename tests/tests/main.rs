//! Whole-system tests, in one executable so that they link once. `cargo test --release -p tests golden` runs the
//! comparison with the reference numbers; `browser` drives a real Chromium.

mod api;
mod browser;
mod dreambooth;
mod golden;
mod job;
mod lora;
mod starter;
mod tutorial;
