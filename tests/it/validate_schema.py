"""What jsonschema finds wrong with each of the instances in a file of {"schema", "instances"}."""

import json
import sys

from jsonschema import Draft202012Validator

with open(sys.argv[1], encoding="utf-8") as file:
    given = json.load(file)
Draft202012Validator.check_schema(given["schema"])
validator = Draft202012Validator(given["schema"])
json.dump([[error.message for error in validator.iter_errors(instance)] for instance in given["instances"]], sys.stdout)
