# SPDX-License-Identifier: Apache-2.0
"""200 texts that lead elsewhere where a name, a path or an address is expected."""

from __future__ import annotations

TARGETS = (
    *("etc/passwd", "root/.ssh/id_rsa", "proc/self/environ", "etc/fl-app-hostile/x.db"),
    *("etc/fl-app-hostile/list.txt", "etc/shadow"),
)
PRIVATE_HOSTS = (
    "169.254.169.254",
    "[fd00:ec2::254]",
    "metadata.google.internal",
    "127.0.0.1:22",
    "localhost:6379",
    "[::1]:11211",
    "0.0.0.0:9",
    "2852039166",
    "0xA9FEA9FE",
    "0251.0376.0251.0376",
    "127.1",
    "[::ffff:169.254.169.254]",
    "10.0.0.1",
    "example.org@169.254.169.254",
    "example.org#@169.254.169.254",
    "169.254.169.254%00.example.org",
)
SCHEMES = (
    *("http", "https", "ftp", "sftp", "file", "s3", "gs", "dbfs", "models", "runs", "hdfs"),
    *("mlflow-artifacts", "gopher", "dict", "ldap", "jar", "data", "javascript", "unix", "git+ssh"),
)


def payloads() -> list[str]:
    """Return all of them."""
    up = [f"{step * 8}{target}" for step in ("../", "..\\", "..//", "..;/") for target in TARGETS]
    up += [f"m-{'0' * 32}/{step * 8}{TARGETS[0]}" for step in ("../", "..\\")]
    coded = [
        f"{dots * 8}{TARGETS[0]}"
        for dots in (
            *("%2e%2e/", "%2e%2e%2f", "..%2f", "%252e%252e%252f", "..%c0%af", "%uff0e%uff0e/"),
            *("..%5c", "\uff0e\uff0e/", "..\u2215", "..\u2044", "....//", ".%00./"),
        )
    ]
    absolute = [f"{start}{target}" for start in ("/", "//", "\\\\host\\", "C:\\", "~root/", "~/../")
                for target in TARGETS]  # fmt: skip
    hosts = [f"http://{host}/latest/meta-data" for host in PRIVATE_HOSTS]
    hosts += [f"{scheme}://169.254.169.254/x" for scheme in SCHEMES]
    hosts += [f"{scheme}:///{TARGETS[0]}" for scheme in SCHEMES]
    hosts += [f"mlflow-artifacts://{host}/m-{'0' * 32}/artifacts" for host in PRIVATE_HOSTS[:6]]
    hosts += [f"sqlite:///../../../../../../../../{TARGETS[3]}", f"sqlite:////{TARGETS[3]}"]
    control = [
        f"name{sign}x" for sign in ("\0", "\n", "\r\n", "\x1b[2J", "\u202e", "\ud800", "\x7f")
    ]
    control += ["champion\n", "\n", "\t", " ", "", ".", "..", "...", "/", "\\", "-", "--help"]
    injected = [
        "' OR '1'='1",
        "'; DROP TABLE runs; --",
        '" OR ""="',
        "` OR 1=1",
        "%' AND tags.`x` LIKE '%",
        "$(touch ran)",
        "`touch ran`",
        "; touch ran",
        "| touch ran",
        "${jndi:ldap://169.254.169.254/a}",
        "{{7*7}}",
        "{0.__class__}",
        "%s%s%s%n",
        "%(name)s",
        "<script>alert(1)</script>",
        "[link=file:///etc/passwd]x[/link]",
        "__import__('os').mkdir('ran')",
        "!!python/object/apply:os.mkdir ['ran']",
        "NaN",
        "-1",
        "1e400",
        "9" * 30,
        "9" * 5000,
        "a" * 300,
        "é" * 200,
        "../" * 2000,
        "con",
        "aux.safetensors",
        "a:b",
        "a@b:c",
        "@",
        "?",
        "#fragment",
        "*",
        "$HOME",
        "%HOME%",
        "${FL_APP_API_TOKEN}",
        "~",
        "~nobody-of-this-name/x",
        "\ufeffname",
        "na\u0000me",
        "{}",
        "[]",
        "null",
        "true",
        "0",
        "1",
        "2026-11-24",
        "1e3",
        "0x10",
        "nul.txt",
        ".ssh/authorized_keys",
        "x.tmp",
    ]
    return list(dict.fromkeys([*up, *coded, *absolute, *hosts, *control, *injected]))
