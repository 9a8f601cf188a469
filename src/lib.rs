//! # pg-iam-proxy
mod cancel;
pub mod cli;
mod client;
mod config;
mod credentials;
mod error;
mod route;
mod secret;
mod server;
mod session;
mod splice;
mod telemetry;
mod tls;
mod upstream;
pub mod wire;
