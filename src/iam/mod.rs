//! Which permissions does AWS check for a login, and how are they written in a policy?
//!
//! `check` tells people which permission they lack, and `policy` writes all of them down; both ask
//! here, so that they cannot name different ARNs. The terms are those of AWS's Service
//! Authorization Reference: an [`Action`] has resource types, and each resource type has a format
//! of ARNs.

mod action;
mod arn;
mod resource;

pub use action::{Action, DSQL_ADMIN, dsql_connect_action};
pub use arn::{Name, account_of, is_account_id, partition_of};
pub use resource::{ResourceNames, ResourceType, configured_server_id, resource_arns};
