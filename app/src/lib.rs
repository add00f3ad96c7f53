//! What the browser and the native side agree on: photo rules and pixel work, recipe, job, event and API types.
//!
//! Invariants: no I/O, no clock, no randomness (`now` and `seed` are arguments); depends on neither web-sys nor
//! axum nor candle; builds for wasm32 and natively. The nouns run in one order in every crate:
//! photo -> crop -> dataset -> recipe -> job -> step -> event -> sample -> checkpoint.
#![forbid(unsafe_code)]

pub mod api;
pub mod background;
pub mod chart;
pub mod command;
pub mod crop;
pub mod dataset;
pub mod draft;
pub mod event;
pub mod job;
pub mod meters;
pub mod photo;
pub mod pixels;
pub mod preset;
pub mod recipe;
pub mod run;
pub mod settings;
pub mod upload;
pub mod words;
