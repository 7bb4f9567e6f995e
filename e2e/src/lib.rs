//! A whole Tandem on one machine, made of the real programs: for end-to-end tests and for the demo.
//!
//! Hosts differ by port and data folder. Everything lies in one temporary folder and ends with the [`Site`], also when
//! a test fails.

pub mod attempts;
mod bulk;
mod cli;
mod client;
mod process;
mod programs;
mod scene;
mod site;
mod tiny;

pub use bulk::{BULK, BULK_FILE, BULK_QUANT, bulk_manifest, bulk_model};
pub use cli::Cli;
pub use client::{Client, Completion, Failure, Seam, Token};
pub use process::Process;
pub use programs::Programs;
pub use scene::{LONG, Scene, story};
pub use site::{Host, Layout, Site, until};
pub use tiny::{DEPLOYMENT, MODEL, deploy, manifest, model_file};
