//! What does the soak share with the benchmark? How processes are started, measured and ended.

pub mod process;
