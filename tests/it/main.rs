//! What does a user or an attacker see of the real binary, in front of real PostgreSQL servers and
//! an AWS endpoint that verifies signatures?

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failing test")]

mod admin;
mod architecture;
mod attribution;
mod authentication;
mod bad_input;
mod bastion;
mod cancel;
mod check;
mod check_engines;
mod client_tls;
mod clocks;
mod configuration;
mod crowds;
mod cut_logins;
mod documents;
mod engines;
mod failures;
mod faults;
mod hostile_clients;
mod hostile_servers;
mod identity;
mod journeys;
mod limits;
mod log_lines;
mod log_loss;
mod login;
mod outages;
mod pacing;
mod policy;
mod pool;
mod replicas;
mod reuse;
mod secrets;
mod shutdown;
mod splice;
mod support;
mod upstream_tls;
