//! What is measured? There is a file for each group of figures.

pub mod bulk;
pub mod burst;
pub mod credentials;
pub mod logins;
pub mod memory;
pub mod pinned;
pub mod real;
pub mod storm;
pub mod trips;
