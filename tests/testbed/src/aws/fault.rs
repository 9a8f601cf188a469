//! What goes wrong, for which operation, and how often?

use std::time::Duration;

/// A failure in the shape that AWS gives it, so that SDKs classify it in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with 400 `Throttling` or `ThrottlingException`, "Rate exceeded".
    Throttle,
    /// Answers with 403, or with 400 if it is a JSON service, and names caller, action and
    /// resource.
    Deny,
    /// Answers with 403, and names this action instead of the operation's own.
    DenyAction(&'static str),
    /// Answers with 500.
    InternalError,
    /// Accepts the request and never answers.
    Hang,
    /// Answers correctly after this delay.
    Slow(Duration),
    /// Answers with 200 and a document that breaks off.
    Malformed,
}

#[derive(Clone, Debug)]
pub struct FaultRule {
    pub fault: Fault,
    /// The operation to which it applies, or `None` for all.
    pub action: Option<String>,
    /// For how many calls it applies, or `None` until the rules are reset.
    pub calls: Option<usize>,
}

impl FaultRule {
    pub fn new(fault: Fault) -> FaultRule {
        FaultRule {
            fault,
            action: None,
            calls: None,
        }
    }

    #[must_use]
    pub fn for_action(self, action: &str) -> FaultRule {
        FaultRule {
            action: Some(action.to_owned()),
            ..self
        }
    }

    #[must_use]
    pub fn times(self, calls: usize) -> FaultRule {
        FaultRule {
            calls: Some(calls),
            ..self
        }
    }
}

pub(super) fn take(rules: &mut [FaultRule], action: &str) -> Option<Fault> {
    let rule = rules.iter_mut().find(|rule| {
        rule.calls != Some(0) && rule.action.as_deref().is_none_or(|only| only == action)
    })?;
    rule.calls = rule.calls.map(|left| left - 1);
    Some(rule.fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_applies_only_to_its_operation_and_is_used_up() {
        let mut rules = [
            FaultRule::new(Fault::Throttle)
                .for_action("DescribeClusters")
                .times(1),
            FaultRule::new(Fault::Deny).times(1),
        ];
        assert_eq!(take(&mut rules, "GetCallerIdentity"), Some(Fault::Deny));
        assert_eq!(take(&mut rules, "GetCallerIdentity"), None);
        assert_eq!(take(&mut rules, "DescribeClusters"), Some(Fault::Throttle));
        assert_eq!(take(&mut rules, "DescribeClusters"), None);
    }
}
