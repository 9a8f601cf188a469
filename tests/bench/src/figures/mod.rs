//! What is measured; a file for each group of figures.

pub mod bulk;
pub mod memory;
pub mod trips;
