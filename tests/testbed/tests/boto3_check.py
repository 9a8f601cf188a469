"""Does the testbed accept what Amazon's own Python SDK signs, and refuse what was altered since?

This program reads one line of JSON that says where things are, and exits with 1 at the first
surprise. A client cannot see why a token was refused, so the caller compares the reasons with the
cases below, in their order.
"""

import datetime
import json
import os
import sys
import tempfile
import traceback
import urllib.error
import urllib.request
from unittest import mock

import boto3
import botocore.auth
import psycopg
from botocore import UNSIGNED
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

bed = json.loads(sys.stdin.readline())
USER, HOST, PORT = "jane_doe", "localhost", bed["rds_port"]
ROLE = "arn:aws:iam::123456789012:role/"


def main():
    api_calls()
    serverless()
    custom_domains()
    role_sessions()
    identity_sources()
    rds_tokens()
    altered_rds_tokens()
    dsql_tokens()
    altered_dsql_tokens()
    altered_requests()


def client(service, key=None, region=bed["region"], **config):
    key = key or bed
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=bed["endpoint_url"],
        aws_access_key_id=key["access_key_id"],
        aws_secret_access_key=key["secret_access_key"],
        aws_session_token=key.get("session_token"),
        config=Config(retries={"total_max_attempts": 1}, **config),
    )


def api_calls():
    redshift, rds = client("redshift"), client("rds")
    plain = redshift.get_cluster_credentials(
        DbUser="ana", ClusterIdentifier="examplecluster", DbName="dev"
    )
    expect(plain["DbUser"], "IAM:ana")
    expect(left(plain["Expiration"]) in range(890, 901), True)
    expect(redshift_user(plain), "IAM:ana")
    created = redshift.get_cluster_credentials(
        DbUser="newcomer",
        ClusterIdentifier="examplecluster",
        AutoCreate=True,
        DbGroups=["bi", "read.only"],
        DurationSeconds=3600,
    )
    expect(created["DbUser"], "IAMA:newcomer:bi,read.only")
    expect(redshift_user(created), "IAMA:newcomer:bi,read.only")
    by_iam = redshift.get_cluster_credentials_with_iam(
        ClusterIdentifier="examplecluster", DbName="dev"
    )
    expect(by_iam["DbUser"], "IAM:" + bed["user_name"])
    expect(redshift_user(by_iam), "IAM:" + bed["user_name"])
    expect(redshift_user(plain), "IAM:ana")

    unknown = redshift.get_cluster_credentials(
        DbUser="nobody_knows", ClusterIdentifier="examplecluster"
    )
    refused(
        psycopg.OperationalError,
        'password authentication failed for user "IAM:nobody_knows"',
        lambda: redshift_user(unknown),
    )

    cluster = redshift.describe_clusters(ClusterIdentifier="examplecluster")["Clusters"][0]
    expect(cluster["Endpoint"], {"Address": "localhost", "Port": bed["redshift_port"]})
    instance = rds.describe_db_instances(DBInstanceIdentifier="mydb")["DBInstances"][0]
    expect(instance["Endpoint"], {"Address": HOST, "Port": PORT})
    expect(instance["IAMDatabaseAuthenticationEnabled"], True)
    db_cluster = rds.describe_db_clusters(DBClusterIdentifier="mycluster")["DBClusters"][0]
    expect(
        (db_cluster["Endpoint"], db_cluster["ReaderEndpoint"], db_cluster["Port"]),
        (HOST, "127.0.0.1", PORT),
    )

    error("ClusterNotFound", lambda: redshift.describe_clusters(ClusterIdentifier="other"))
    error(
        "ClusterNotFound",
        lambda: redshift.get_cluster_credentials(DbUser="ana", ClusterIdentifier="other"),
    )
    error("DBInstanceNotFound", lambda: rds.describe_db_instances(DBInstanceIdentifier="other"))
    error("DBClusterNotFoundFault", lambda: rds.describe_db_clusters(DBClusterIdentifier="other"))
    for wrong in (
        {"DurationSeconds": 899},
        {"DbUser": "a:b"},
        {"DbUser": "public"},
        {"DbGroups": ["Upper"]},
        {"DbName": "1st"},
    ):
        call = {"DbUser": "ana", "ClusterIdentifier": "examplecluster", **wrong}
        error("InvalidParameterValue", lambda: redshift.get_cluster_credentials(**call))
    error("InvalidParameterCombination", lambda: redshift.get_cluster_credentials(DbUser="ana"))


def serverless():
    """The API speaks JSON 1.1, and the PostgreSQL behind it is the same as the cluster's."""
    workgroup = client("redshift-serverless").get_workgroup(workgroupName="myworkgroup")[
        "workgroup"
    ]
    expect(workgroup["endpoint"], {"address": "localhost", "port": bed["redshift_port"]})
    for name in ({"workgroupName": "myworkgroup"}, {"customDomainName": "serverless.example.com"}):
        mine = client("redshift-serverless").get_credentials(
            dbName="dev", durationSeconds=1800, **name
        )
        expect(mine["dbUser"], "IAM:" + bed["user_name"])
        expect(left(mine["expiration"]) in range(1790, 1801), True)
        expect(left(mine["nextRefreshTime"]) in range(890, 901), True)
        expect(serverless_user(mine), "IAM:" + bed["user_name"])
    by_role = client("redshift-serverless", role_key()).get_credentials(workgroupName="myworkgroup")
    expect(serverless_user(by_role), "IAMR:analyst")

    serverless = client("redshift-serverless")
    error("ResourceNotFoundException", lambda: serverless.get_workgroup(workgroupName="other"))
    error("ResourceNotFoundException", lambda: serverless.get_credentials(workgroupName="other"))
    for wrong in (
        {"durationSeconds": 899},
        {"dbName": "1st"},
        {"customDomainName": "serverless.example.com"},
    ):
        error(
            "ValidationException",
            lambda: serverless.get_credentials(**{"workgroupName": "myworkgroup", **wrong}),
        )
    error("ValidationException", lambda: serverless.get_credentials())
    stranger = client("redshift-serverless", {**bed, "secret_access_key": "x" * 40})
    error("InvalidSignatureException", lambda: stranger.get_workgroup(workgroupName="myworkgroup"))
    unknown = client("redshift-serverless", {**bed, "access_key_id": "AKIAUNKNOWNUNKNOWN12"})
    error("UnrecognizedClientException", lambda: unknown.get_workgroup(workgroupName="myworkgroup"))
    elsewhere = client("redshift-serverless", region="eu-west-1")
    error("InvalidSignatureException", lambda: elsewhere.get_workgroup(workgroupName="myworkgroup"))


def custom_domains():
    redshift = client("redshift")
    expect(
        redshift.get_cluster_credentials(DbUser="ana", CustomDomainName="warehouse.example.com")[
            "DbUser"
        ],
        "IAM:ana",
    )
    association = redshift.describe_custom_domain_associations(
        CustomDomainName="warehouse.example.com"
    )["Associations"][0]
    expect(association["CertificateAssociations"][0]["ClusterIdentifier"], "examplecluster")
    error(
        "CustomDomainAssociationNotFoundFault",
        lambda: redshift.describe_custom_domain_associations(CustomDomainName="other.example.com"),
    )


def role_sessions():
    sts = client("sts")
    expect(sts.get_caller_identity()["Arn"], "arn:aws:iam::123456789012:user/" + bed["user_name"])
    analyst = assumed(sts.assume_role(RoleArn=ROLE + "analyst", RoleSessionName="me"))
    expect(
        client("sts", analyst).get_caller_identity()["Arn"],
        "arn:aws:sts::123456789012:assumed-role/analyst/me",
    )
    by_iam = client("redshift", analyst).get_cluster_credentials_with_iam(
        ClusterIdentifier="examplecluster"
    )
    expect(by_iam["DbUser"], "IAMR:analyst")
    expect(redshift_user(by_iam), "IAMR:analyst")

    partner = {"RoleArn": ROLE + "partner", "RoleSessionName": "me"}
    error("AccessDenied", lambda: sts.assume_role(**partner))
    error("AccessDenied", lambda: sts.assume_role(**partner, ExternalId="guess"))
    error(
        "AccessDenied", lambda: sts.assume_role(RoleArn=ROLE + "unheard-of", RoleSessionName="me")
    )
    assumed(sts.assume_role(**partner, ExternalId="external-id-7"))

    anonymous = client("sts", signature_version=UNSIGNED)
    pod = {"RoleArn": ROLE + "pod-role", "RoleSessionName": "pod"}
    assumed(
        anonymous.assume_role_with_web_identity(**pod, WebIdentityToken=bed["web_identity_token"])
    )
    error(
        "InvalidIdentityToken",
        lambda: anonymous.assume_role_with_web_identity(**pod, WebIdentityToken="a.b.c"),
    )


def identity_sources():
    """The SDK finds these by itself, as it does on a machine, in a container and in a pod."""
    metadata = {
        "AWS_EC2_METADATA_DISABLED": "false",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": bed["endpoint_url"],
    }
    expect(
        caller_with(metadata),
        "arn:aws:sts::123456789012:assumed-role/instance-role/i-0123456789abcdef0",
    )
    container = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": bed["endpoint_url"] + "/container/credentials"
    }
    expect(caller_with(container), "arn:aws:sts::123456789012:assumed-role/task-role/task")
    container["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = bed["container_token"]
    expect(caller_with(container), "arn:aws:sts::123456789012:assumed-role/task-role/task")
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(bed["web_identity_token"])
        file.flush()
        pod = {
            "AWS_ROLE_ARN": ROLE + "pod-role",
            "AWS_WEB_IDENTITY_TOKEN_FILE": file.name,
            "AWS_ROLE_SESSION_NAME": "pod",
        }
        expect(caller_with(pod), "arn:aws:sts::123456789012:assumed-role/pod-role/pod")

    portal = client("sso", signature_version=UNSIGNED)
    session = portal.get_role_credentials(
        roleName="analyst", accountId="123456789012", accessToken=bed["sso_token"]
    )
    key = session["roleCredentials"]
    key = {
        "access_key_id": key["accessKeyId"],
        "secret_access_key": key["secretAccessKey"],
        "session_token": key["sessionToken"],
    }
    expect(
        client("sts", key).get_caller_identity()["Arn"],
        "arn:aws:sts::123456789012:assumed-role/analyst/sso-user",
    )
    guess = {"roleName": "analyst", "accountId": "123456789012", "accessToken": "guess"}
    error("UnauthorizedException", lambda: portal.get_role_credentials(**guess))


def caller_with(environment):
    nothing = {
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_ENDPOINT_URL": bed["endpoint_url"],
    }
    with mock.patch.dict(os.environ, {**nothing, **environment}):
        return boto3.Session(region_name=bed["region"]).client("sts").get_caller_identity()["Arn"]


def rds_tokens():
    expect(rds_user(token()), USER)
    expect(rds_user(token(host="127.0.0.1")), USER)
    expect(rds_user(token(host="mydb.123456789012.us-west-2.rds.amazonaws.com", port=5432)), USER)
    expect(rds_user(token(user="a+b@c d"), user="a+b@c d"), "a+b@c d")
    expect(rds_user(token(key=role_key())), USER)


def altered_rds_tokens():
    """The order matters: the caller expects a reason for each."""
    denied(token(host="elsewhere"))
    denied(token(host="elsewhere").replace("elsewhere:", "localhost:", 1))
    denied(token(port=PORT + 1))
    denied(token(), user="a+b@c d")
    denied(token().replace("DBUser=jane_doe", "DBUser=a%2Bb%40c%20d"), user="a+b@c d")
    denied(token(region="eu-west-1"))
    denied(token(key={**bed, "secret_access_key": "x" * 40}))
    denied(token(key={**bed, "access_key_id": "AKIAUNKNOWNUNKNOWN12"}))
    denied(token(key={**role_key(), "session_token": "x" * 356}))
    denied(token(key={**bed, "session_token": "uncalled-for"}))
    denied(token().replace("X-Amz-Expires=900", "X-Amz-Expires=901"))
    denied(token().replace("X-Amz-Expires=900", "X-Amz-Expires=899"))
    denied(token(age=datetime.timedelta(seconds=910)))
    denied(token(age=datetime.timedelta(seconds=-60)))
    denied(token().replace("Action=connect", "Action=Connect"))
    denied(token() + "&DBUser=jane_doe")
    denied("password")


DSQL = "foo0bar1baz2quux3quuux4qux.dsql.us-west-2.on.aws"


def dsql_tokens():
    """The order matters: the caller expects the user and the action of each."""
    expect(dsql_user(dsql_token()), "dsql_reader")
    expect(dsql_user(dsql_token(host=DSQL)), "dsql_reader")
    expect(dsql_user(dsql_token("admin"), "admin"), "admin")
    expect(dsql_user(dsql_token(key=role_key())), "dsql_reader")
    expect(dsql_user(dsql_token(life=7 * 24 * 3600)), "dsql_reader")


def altered_dsql_tokens():
    """The order matters: the caller expects a reason for each."""
    not_dsql(dsql_token(), "admin")
    not_dsql(dsql_token("admin"))
    not_dsql(dsql_token().replace("Action=DbConnect", "Action=DbConnectAdmin"), "admin")
    not_dsql(dsql_token(host="elsewhere"))
    not_dsql(dsql_token(host=f"localhost:{bed['dsql_port']}"))
    not_dsql(dsql_token(region="eu-west-1"))
    not_dsql(token(user="dsql_reader"))
    not_dsql(dsql_token(life=7 * 24 * 3600 + 1))
    not_dsql(dsql_token(age=datetime.timedelta(seconds=910)))
    not_dsql("password")
    libpq = {
        "port": bed["dsql_port"],
        "user": "admin",
        "password": dsql_token("admin"),
        "dbname": "postgres",
        "sslrootcert": bed["ca_file"],
    }
    for text, change in (
        ("sni was not received", {"host": "127.0.0.1"}),
        ('database "dev" does not exist', {"host": HOST, "dbname": "dev"}),
        ("a secure connection is required", {"host": HOST, "sslmode": "disable"}),
    ):
        refused(
            psycopg.OperationalError,
            text,
            lambda: psycopg.connect(**{"sslmode": "verify-full", **libpq, **change}),
        )


def altered_requests():
    error(
        "SignatureDoesNotMatch",
        lambda: client("sts", {**bed, "secret_access_key": "x" * 40}).get_caller_identity(),
    )
    error(
        "InvalidClientTokenId",
        lambda: client(
            "sts", {**bed, "access_key_id": "AKIAUNKNOWNUNKNOWN12"}
        ).get_caller_identity(),
    )
    error(
        "InvalidClientTokenId",
        lambda: client("sts", {**role_key(), "session_token": "x" * 356}).get_caller_identity(),
    )
    error(
        "SignatureDoesNotMatch", lambda: client("redshift", region="eu-west-1").describe_clusters()
    )
    error(
        "MissingAuthenticationToken",
        lambda: client("redshift", signature_version=UNSIGNED).describe_clusters(),
    )
    with clock(datetime.timedelta(seconds=310)):
        error("SignatureDoesNotMatch", lambda: client("redshift").describe_clusters())

    body = "Action=DescribeClusters&Version=2012-12-01"
    expect(post(body, "redshift", body), 200)
    expect(post(body, "redshift", body + "&ClusterIdentifier=examplecluster"), 403)
    expect(post(body, "rds", body), 403)


def token(
    host=HOST, port=PORT, user=USER, key=None, region=bed["region"], age=datetime.timedelta(0)
):
    with clock(age):
        return client("rds", key).generate_db_auth_token(
            DBHostname=host, Port=port, DBUsername=user, Region=region
        )


def dsql_token(
    user="dsql_reader",
    host=HOST,
    key=None,
    region=bed["region"],
    life=900,
    age=datetime.timedelta(0),
):
    with clock(age):
        dsql = client("dsql", key)
        generate = (
            dsql.generate_db_connect_admin_auth_token
            if user == "admin"
            else dsql.generate_db_connect_auth_token
        )
        return generate(Hostname=host, Region=region, ExpiresIn=life)


def clock(age):
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) - age
    return mock.patch("botocore.auth.get_current_datetime", lambda *_, **__: now)


def post(signed_body, service, sent_body):
    """Signs one body and sends another."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    request = AWSRequest("POST", bed["endpoint_url"] + "/", headers=headers, data=signed_body)
    key = Credentials(bed["access_key_id"], bed["secret_access_key"])
    botocore.auth.SigV4Auth(key, service, bed["region"]).add_auth(request)
    sent = urllib.request.Request(request.url, sent_body.encode(), dict(request.headers.items()))
    try:
        return urllib.request.urlopen(sent).status
    except urllib.error.HTTPError as refusal:
        return refusal.code


def role_key():
    return assumed(client("sts").assume_role(RoleArn=ROLE + "analyst", RoleSessionName="tokens"))


def assumed(answer):
    key = answer["Credentials"]
    expect(left(key["Expiration"]) in range(3590, 3601), True)
    return {
        "access_key_id": key["AccessKeyId"],
        "secret_access_key": key["SecretAccessKey"],
        "session_token": key["SessionToken"],
    }


def left(expiration):
    return round((expiration - datetime.datetime.now(datetime.timezone.utc)).total_seconds())


def redshift_user(credentials):
    return current_user(
        bed["redshift_port"], credentials["DbUser"], credentials["DbPassword"], "dev"
    )


def serverless_user(credentials):
    return current_user(
        bed["redshift_port"], credentials["dbUser"], credentials["dbPassword"], "dev"
    )


def dsql_user(password, user="dsql_reader"):
    return current_user(bed["dsql_port"], user, password, "postgres")


def rds_user(password, user=USER):
    return current_user(PORT, user, password, "postgres")


def current_user(port, user, password, database):
    with psycopg.connect(
        host=HOST,
        port=port,
        user=user,
        password=password,
        dbname=database,
        sslmode="verify-full",
        sslrootcert=bed["ca_file"],
    ) as connection:
        return connection.execute("SELECT current_user").fetchone()[0]


def denied(password, user=USER):
    refused(
        psycopg.OperationalError,
        f'authentication failed for user "{user}"',
        lambda: rds_user(password, user),
    )


def not_dsql(password, user="dsql_reader"):
    refused(
        psycopg.OperationalError,
        f'authentication failed for user "{user}"',
        lambda: dsql_user(password, user),
    )


def error(code, call):
    try:
        call()
    except ClientError as answer:
        expect(answer.response["Error"]["Code"], code)
    else:
        sys.exit(f"expected {code}, and the call succeeded")


def refused(kind, text, call):
    try:
        call()
    except kind as refusal:
        if text not in str(refusal):
            sys.exit(f"expected {text!r}, got {refusal}")
    else:
        sys.exit(f"expected {text!r}, and it succeeded")


def expect(found, wanted):
    if found != wanted:
        traceback.print_stack()
        sys.exit(f"expected {wanted!r}, got {found!r}")


main()
