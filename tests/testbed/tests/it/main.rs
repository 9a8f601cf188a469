//! Does the testbed work with real clients? They are psql, and a raw one for what no common client
//! speaks.

mod aws;
mod dsql;
mod lifecycle;
mod psql;
mod raw;
mod rds;
mod redshift;
