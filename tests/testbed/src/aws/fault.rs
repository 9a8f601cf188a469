//! What goes wrong, for which operation, and how often?

use std::time::Duration;

/// In AWS's own shape, so that SDKs classify it as they do AWS's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 400 `Throttling` or `ThrottlingException`, "Rate exceeded".
    Throttle,
    /// 403, or 400 of a JSON service, naming caller, action and resource.
    Deny,
    /// 403, naming this action instead of the operation's own.
    DenyAction(&'static str),
    /// 500.
    InternalError,
    /// Takes the request and never answers.
    Hang,
    /// Answers well, and this late.
    Slow(Duration),
    /// 200 with a document that breaks off.
    Malformed,
}

#[derive(Clone, Debug)]
pub struct FaultRule {
    pub fault: Fault,
    /// None: every operation.
    pub action: Option<String>,
    /// None: until the rules are reset.
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
    pub fn of(self, action: &str) -> FaultRule {
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
    fn a_rule_is_used_up_and_only_for_its_operation() {
        let mut rules = [
            FaultRule::new(Fault::Throttle)
                .of("DescribeClusters")
                .times(1),
            FaultRule::new(Fault::Deny).times(1),
        ];
        assert_eq!(take(&mut rules, "GetCallerIdentity"), Some(Fault::Deny));
        assert_eq!(take(&mut rules, "GetCallerIdentity"), None);
        assert_eq!(take(&mut rules, "DescribeClusters"), Some(Fault::Throttle));
        assert_eq!(take(&mut rules, "DescribeClusters"), None);
    }
}
