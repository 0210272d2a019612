//! The NBD server before those who judge it: libnbd's tools and bindings, qemu's, and fio.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "nbd/server.rs"]
mod server;
#[path = "nbd/tools.rs"]
mod tools;

use serde_json::Value;
use server::TestServer;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use tools::{fail, python, succeed, tool};
use torus_agent::device::BlockDevice;

const MIB: u64 = 1 << 20;
const ONE: &[(&str, u64, bool)] = &[("db-0", 64 * MIB, false)];
const TWO: &[(&str, u64, bool)] = &[("db-0", 64 * MIB, false), ("frozen", 8 * MIB, true)];

fn nbdinfo() -> Command {
    tool("nbdinfo", "libnbd-bin")
}

fn nbdcopy() -> Command {
    tool("nbdcopy", "libnbd-bin")
}

fn qemu_io(uri: &str, commands: &[&str]) -> Command {
    let mut command = tool("qemu-io", "qemu-utils");
    command.args(["-f", "raw"]);
    for each in commands {
        command.args(["-c", each]);
    }
    command.arg(uri);
    command
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// (offset, length, type) of each extent that nbdinfo sees; type 0 is data, 3 is hole and zero.
fn map(uri: &str) -> Vec<(u64, u64, u64)> {
    let field = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    let extents = json(&succeed(nbdinfo().args(["--json", "--map", uri])));
    let extents = extents.as_array().unwrap().iter();
    extents.map(|e| (field(e, "offset"), field(e, "length"), field(e, "type"))).collect()
}

#[test]
fn nbdinfo_lists_and_describes() {
    let server = TestServer::new(TWO);
    for root in [server.uri(""), server.tcp_uri("")] {
        let listed = json(&succeed(nbdinfo().args(["--json", "--list", &root])));
        let exports = listed["exports"].as_array().unwrap();
        let seen: Vec<_> = exports
            .iter()
            .map(|e| {
                (e["export-name"].as_str().unwrap(), e["export-size"].as_u64().unwrap(), e["is_read_only"] == true)
            })
            .collect();
        assert_eq!(seen, TWO);
    }
    let info = json(&succeed(nbdinfo().args(["--json", &server.uri("db-0")])));
    let export = &info["exports"][0];
    assert_eq!(export["description"], "volume db-0");
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for can in
        ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!(
        (&export["block_size_minimum"], &export["block_size_preferred"], &export["block_size_maximum"]),
        (&1.into(), &4096.into(), &(32 * MIB).into())
    );
    fail(nbdinfo().arg(server.uri("nothing")));
    // Without a name there is no choosing between two.
    fail(nbdinfo().arg(server.uri("")));
    let single = TestServer::new(ONE);
    assert_eq!(succeed(nbdinfo().args(["--size", &single.uri("")])).trim(), (64 * MIB).to_string());
}

/// A sparse file: 3 MiB and a bit of data in 64 MiB.
fn sparse_file(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    file.set_len(64 * MIB).unwrap();
    for (at, len) in [(0, 4096), (5 * MIB, 2 * MIB), (31 * MIB + 8192, MIB), (64 * MIB - 4096, 4096)] {
        file.seek(SeekFrom::Start(at)).unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| ((at + i) / 7 % 251) as u8 | 1).collect();
        file.write_all(&bytes).unwrap();
    }
}

#[test]
fn nbdcopy_keeps_holes_both_ways() {
    let server = TestServer::new(ONE);
    let (source, copy) = (server.path("source"), server.path("copy"));
    sparse_file(&source);
    let wanted = [(0, 4096), (5 * MIB, 2 * MIB), (31 * MIB + 8192, MIB), (64 * MIB - 4096, 4096)];
    for uri in [server.uri("db-0"), server.tcp_uri("db-0")] {
        succeed(nbdcopy().args(["--connections=4", "--requests=32"]).arg(&source).arg(&uri));
        // Small writes round what is zero inside the data to 64 KiB at most, never the other way.
        let data: u64 = map(&uri).iter().filter(|e| e.2 == 0).map(|e| e.1).sum();
        let least: u64 = wanted.iter().map(|w| w.1).sum();
        assert!(
            (least..least + 4 * 64 * 1024).contains(&data),
            "{data} bytes of data, {least} wanted: {:?}",
            map(&uri)
        );

        succeed(nbdcopy().arg("--destination-is-zero").arg(&uri).arg(&copy));
        assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap(), "the copy differs");
        let taken = fs::metadata(&copy).unwrap().blocks() * 512;
        assert!(taken < 8 * MIB, "the copy takes {taken} bytes: its holes are filled");
        fs::remove_file(&copy).unwrap();
        succeed(&mut qemu_io(&uri, &["discard 0 64M"]));
        assert_eq!(map(&uri), [(0, 64 * MIB, 3)]);
    }
}

#[test]
fn nbdcopy_between_two_servers() {
    let (one, other) = (TestServer::new(ONE), TestServer::new(ONE));
    let source = one.path("source");
    sparse_file(&source);
    succeed(nbdcopy().arg(&source).arg(one.uri("db-0")));
    succeed(nbdcopy().arg(one.tcp_uri("db-0")).arg(other.uri("db-0")));
    succeed(
        tool("qemu-img", "qemu-utils").args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(other.uri("db-0")),
    );
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let server = TestServer::new(TWO);
    let uri = server.uri("db-0");
    succeed(&mut qemu_io(
        &uri,
        &[
            "write -P 1 0 1M",
            "read -P 1 0 1M",
            // Ranges of no particular shape.
            "write -P 2 1234 5678",
            "read -P 1 0 1234",
            "read -P 2 1234 5678",
            "read -P 1 6912 100000",
            "write -z 4000 5000",
            "read -P 2 1234 2766",
            "read -P 0 4000 5000",
            "read -P 1 9000 1000",
            "write -z -u 512k 256k",
            "read -P 0 512k 256k",
            "discard 256k 64k",
            "read -P 0 256k 64k",
            "write -f -P 3 10M 32M",
            "read -P 3 10M 32M",
            "flush",
            // Many at once.
            "aio_write -P 4 50M 1M",
            "aio_write -P 5 51M 1M",
            "aio_read -P 3 20M 1M",
            "aio_flush",
            "read -P 4 50M 1M",
            "read -P 5 51M 1M",
        ],
    ));
    let (flushes, durable) = server.device(0, |d| (d.device().flushes(), d.device().durable_writes()));
    assert!(flushes > 0 && durable > 0, "FLUSH and FUA reach the device: {flushes} {durable}");
    let refused = fail(&mut qemu_io(&server.uri("frozen"), &["write 0 4k"]));
    assert!(
        refused.contains("read-only") || refused.contains("Permission") || refused.contains("not permitted"),
        "{refused}"
    );
}

#[test]
fn qemu_img_converts_maps_and_compares() {
    let server = TestServer::new(ONE);
    let (source, uri) = (server.path("source"), server.uri("db-0"));
    sparse_file(&source);
    let qemu_img = || tool("qemu-img", "qemu-utils");
    succeed(qemu_img().args(["convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W"]).arg(&source).arg(&uri));
    succeed(qemu_img().args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(&uri));
    let extents = json(&succeed(qemu_img().args(["map", "--output=json", "-f", "raw", &uri])));
    let holes = extents.as_array().unwrap().iter().filter(|e| e["data"] == false && e["zero"] == true).count();
    assert_eq!(holes, 3, "{extents}");
    let back = server.path("back");
    succeed(qemu_img().args(["convert", "-f", "raw", "-O", "raw", &uri]).arg(&back));
    assert!(fs::read(&source).unwrap() == fs::read(&back).unwrap(), "the copy differs");
}

#[test]
fn libnbd_negotiates_every_way() {
    let server = TestServer::new(TWO);
    let socket = server.socket();
    for uri in [server.uri("db-0"), server.tcp_uri("db-0")] {
        python("negotiation.py", &[&uri, &server.uri("frozen"), socket.to_str().unwrap()]);
    }
}

#[test]
fn a_grown_device_is_served_to_its_new_end() {
    let server = TestServer::new(ONE);
    let uri = server.uri("db-0");
    fail(&mut qemu_io(&uri, &["write -P 9 64M 1M"]));
    server.device(0, |d| d.device().grow(128 * MIB));
    assert_eq!(server.device(0, |d| d.info().size_bytes), 128 * MIB);
    succeed(&mut qemu_io(&uri, &["write -P 9 64M 64M", "read -P 9 64M 64M"]));
}

fn fio(uri: &str, more: &[&str]) -> Command {
    let mut command = tool("fio", "fio");
    command.args(["--name=t", "--ioengine=nbd", "--size=48m", "--verify=crc32c", "--verify_fatal=1"]);
    command.arg(format!("--uri={uri}")).args(more);
    command
}

#[test]
fn fio_verifies_what_it_wrote() {
    let server = TestServer::new(ONE);
    for uri in [server.uri("db-0"), server.tcp_uri("db-0")] {
        for load in [
            &["--rw=randwrite", "--bs=4k", "--iodepth=32"][..],
            &["--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned", "--iodepth=16", "--norandommap=0"],
            &["--rw=write", "--bs=1m", "--iodepth=8"],
        ] {
            succeed(fio(&uri, load).args(["--do_verify=0"]));
            succeed(fio(&uri, load).args(["--verify_only"]));
        }
    }
}

#[test]
fn fio_on_several_connections_at_once() {
    let server = TestServer::new(ONE);
    succeed(fio(&server.uri("db-0"), &["--rw=randrw", "--bs=4k", "--iodepth=16"]).args([
        "--numjobs=4",
        "--size=16m",
        "--offset_increment=16m",
        "--fsync=64",
    ]));
    let flushes = server.device(0, |d| d.device().flushes());
    assert!(flushes > 0);
}
