"""Does an independent linter accept every policy that `pg-iam-proxy policy` printed?"""

import json
import sys

import parliament

LIMIT = 6144


def policies(printed):
    if "Statement" in printed:
        yield printed
    if "ProxyPolicy" in printed:
        yield printed["ProxyPolicy"]
    for profile in printed.get("Profiles", []):
        yield profile["Policy"]
    for role in printed.get("Roles", []):
        yield role["Policy"]
        # The linter does not know trust policies, whose resource is the role that they belong to.
        statements = [
            {**statement, "Resource": role["RoleArn"]}
            for statement in role["TrustPolicy"]["Statement"]
        ]
        yield {**role["TrustPolicy"], "Statement": statements}


found = 0
for policy in policies(json.load(sys.stdin)):
    text = json.dumps(policy, separators=(",", ":"))
    findings = parliament.analyze_policy_string(text).findings
    if len(text) > LIMIT:
        findings.append(f"{len(text)} characters")
    for finding in findings:
        print(finding, text, sep="\n")
    found += len(findings)
sys.exit(found > 0)
