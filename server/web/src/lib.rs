//! The service `likeness`: takes photos in, queues jobs, starts trainers, tells viewers, sends results.
//!
//! Invariants: nothing here touches a tensor: the trainer is a program (`trainer`), a job is a folder
//! (`jobs::folder`), a run is the fold of its log (`app::run`). State is on disk before anyone is told. Every channel
//! is bounded: viewers wait for a number and read the log themselves, however slow they are.

pub mod config;
pub mod db;
pub mod download;
pub mod error;
pub mod guard;
pub mod hub_token;
pub mod jobs;
pub mod page;
pub mod photos;
pub mod routes;
pub mod server;
pub mod trainer;
pub mod ws;
