//! TLS from end to end, with QEMU and libnbd as clients and certificates made for the test.
#![cfg(feature = "tls")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Outcome, Served, blkproof, run, shell};
use std::path::Path;
use tempfile::{TempDir, tempdir};

/// A folder with `a.raw`, `tls/` with all certificates, `nobody/` with only the CA's, and `other/` of another CA.
fn certificates() -> TempDir {
    let dir = tempdir().unwrap();
    let make = r#"
        key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        for set in tls other; do
            mkdir $set; cd $set
            openssl req -x509 $key -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=ca-$set \
                -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
            for who in server client; do
                openssl req $key -keyout $who-key.pem -out $who.csr -subj /CN=localhost
                printf "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=${who}Auth\nkeyUsage=critical,digitalSignature,keyEncipherment\n" >$who.ext
                openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
                    -extfile $who.ext -out $who-cert.pem
            done
            cd ..
        done
        mkdir nobody; cp tls/ca-cert.pem nobody; truncate -s 1M a.raw"#;
    shell(dir.path(), make).exited(0);
    dir
}

/// QEMU's client with the certificates in the folder `set`.
fn qemu_io(dir: &Path, set: &str, served: &Served, commands: &[&str]) -> Outcome {
    let creds = format!("tls-creds-x509,id=t,dir={set},endpoint=client");
    let socket = served.socket.display();
    let image = format!("driver=nbd,server.type=unix,server.path={socket},tls-creds=t,tls-hostname=localhost");
    let mut args = vec!["--object", &creds, "--image-opts"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(&image);
    run(dir, "qemu-io", &args)
}

#[test]
fn offered_tls_is_used_by_those_who_want_it() {
    let dir = certificates();
    let dir = dir.path();
    let mut served = Served::start(dir, 1, &["--tls-certificates", "tls", "-f", "raw", "a.raw"]);
    assert!(served.uri().starts_with("nbds+unix:///?socket="), "{}", served.uri());
    let outcome = qemu_io(dir, "tls", &served, &["write -P 7 0 300k", "flush", "read -P 7 0 300k"]).exited(0);
    assert!(!outcome.stdout.contains("failed"), "{}", outcome.stdout);
    // Without a certificate of its own, and without TLS at all: nothing asks for either.
    qemu_io(dir, "nobody", &served, &["read -P 7 0 300k"]).exited(0);
    let plain = served.uri().replace("nbds+", "nbd+");
    run(dir, "qemu-io", &["-f", "raw", "-c", "read -P 7 0 300k", &plain]).exited(0);
    let uri = format!("{}&tls-certificates={}", served.uri(), dir.join("tls").display());
    assert_eq!(run(dir, "nbdinfo", &["--size", &uri]).exited(0).stdout, "1048576\n");
    // The client believes only its own CA.
    assert_ne!(qemu_io(dir, "other", &served, &["read 0 512"]).code, 0);
    served.stop().exited(0);
}

#[test]
fn required_tls_refuses_plain_clients() {
    let dir = certificates();
    let dir = dir.path();
    let mut served = Served::start(dir, 1, &["--tls-certificates", "tls", "--tls-require", "-f", "raw", "a.raw"]);
    qemu_io(dir, "nobody", &served, &["write -P 7 0 4k"]).exited(0);
    let plain = served.uri().replace("nbds+", "nbd+");
    let outcome = run(dir, "qemu-io", &["-f", "raw", "-c", "write -P 9 0 4k", &plain]).exited(1);
    assert!(outcome.stderr.contains("TLS"), "{}", outcome.stderr);
    qemu_io(dir, "nobody", &served, &["read -P 7 0 4k"]).exited(0);
    served.stop().exited(0);
}

#[test]
fn clients_can_be_asked_for_a_certificate() {
    let dir = certificates();
    let dir = dir.path();
    let args = ["--tls-certificates", "tls", "--tls-require", "--tls-verify-client", "-f", "raw", "a.raw"];
    let mut served = Served::start(dir, 1, &args);
    qemu_io(dir, "tls", &served, &["write -P 7 0 4k"]).exited(0);
    assert_ne!(qemu_io(dir, "nobody", &served, &["write -P 9 0 4k"]).code, 0);
    // A certificate of another CA, presented by a client that trusts ours.
    shell(dir, "mkdir forged; cp other/client-*.pem forged; cp tls/ca-cert.pem forged").exited(0);
    let forged = qemu_io(dir, "forged", &served, &["write -P 9 0 4k"]);
    assert_ne!(forged.code, 0, "{forged:?}");
    qemu_io(dir, "tls", &served, &["read -P 7 0 4k"]).exited(0);
    let outcome = served.stop().exited(0);
    assert!(outcome.stderr.contains("TLS handshake failed: peer sent no certificates"), "{}", outcome.stderr);
}

#[test]
fn missing_certificates_are_named() {
    let dir = certificates();
    let dir = dir.path();
    let serve =
        |args: &[&str]| blkproof(dir, &[&["serve", "--unix", "x.sock", "-f", "raw", "a.raw"][..], args].concat());
    let outcome = serve(&["--tls-certificates", "nix"]).exited(1);
    assert!(outcome.stderr.contains("nix/server-cert.pem"), "{}", outcome.stderr);
    let outcome = serve(&["--tls-certificates", "nobody"]).exited(1);
    assert!(outcome.stderr.contains("nobody/server-cert.pem"), "{}", outcome.stderr);
    assert!(serve(&["--tls-require"]).exited(2).stderr.contains("--tls-certificates"));
    assert!(!dir.join("x.sock").exists());
}
