"""What does an OpenMetrics parser make of a scrape? Prints lists of [type, name, labels, value]."""

import json
import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

request = urllib.request.Request(
    sys.argv[1], headers={"Accept": "application/openmetrics-text; version=1.0.0"}
)
with urllib.request.urlopen(request, timeout=10) as response:
    assert (
        response.headers["Content-Type"]
        == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    )
    families = text_string_to_metric_families(response.read().decode())
    print(
        json.dumps([[family.type, *sample[:3]] for family in families for sample in family.samples])
    )
