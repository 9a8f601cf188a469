//! What is measured? There is a file for each group of figures.

pub mod bulk;
pub mod credentials;
pub mod logins;
pub mod memory;
pub mod real;
pub mod trips;
