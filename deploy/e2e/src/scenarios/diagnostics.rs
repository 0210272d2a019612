//! What there is to see after a failure: objects, events, logs, mounts.

use super::files::write;
use crate::kube::Cluster;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Collects it into `directory`, which is made anew. What cannot be had is written down as such.
pub fn collect(cluster: &Cluster, directory: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let kubectl = |file: &str, args: &[&str]| {
        let said = cluster.kubectl().run(args.iter().copied());
        write(directory, file, &said.unwrap_or_else(|error| format!("{error:#}\n")))
    };
    kubectl("pods.txt", &["get", "pods", "-A", "-o", "wide"])?;
    kubectl("events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"])?;
    kubectl("describe-pods.txt", &["describe", "pods", "-A"])?;
    let kinds =
        "toruscluster,torusvolume,pv,pvc,volumeattachment,node,csinode,csidriver,sts,ds,deploy,svc,cm,job,lease";
    kubectl("objects.yaml", &["get", kinds, "-A", "-o", "yaml"])?;
    logs_of_pods(cluster, directory)?;
    for node in cluster.nodes() {
        for (file, program, args) in [
            ("mounts", "cat", &["/proc/self/mountinfo"][..]),
            ("loops", "losetup", &["--list"]),
            ("processes", "ps", &["-ef"]),
            ("addresses", "ip", &["address"]),
        ] {
            let said = node.said(program, args.iter().copied());
            write(
                directory,
                &format!("{}-{file}.txt", node.name()),
                &said.unwrap_or_else(|error| format!("{error:#}\n")),
            )?;
        }
    }
    // Of apiserver, kubelets, containerds and the rest.
    for entry in fs::read_dir(cluster.control().logs()).context("cannot list logs")?.flatten() {
        fs::copy(entry.path(), directory.join(entry.file_name())).context("cannot copy a log")?;
    }
    Ok(())
}

fn logs_of_pods(cluster: &Cluster, directory: &Path) -> Result<()> {
    let pods = cluster.kubectl().json(["get", "pods", "-A"]).unwrap_or_default();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let [namespace, name] = ["namespace", "name"].map(|key| pod["metadata"][key].as_str().unwrap_or_default());
        let statuses = ["containerStatuses", "initContainerStatuses"].map(|key| pod["status"][key].as_array());
        for container in statuses.into_iter().flatten().flatten() {
            let container_name = container["name"].as_str().unwrap_or_default();
            let has_restarted = container["restartCount"].as_u64().is_some_and(|count| count > 0);
            for previous in if has_restarted { &[false, true][..] } else { &[false] } {
                let mut args = vec!["logs", "-n", namespace, name, "-c", container_name];
                args.extend(previous.then_some("--previous"));
                let said = cluster.kubectl().run(args).unwrap_or_else(|error| format!("{error:#}\n"));
                let suffix = if *previous { ".previous" } else { "" };
                write(directory, &format!("pod-{namespace}-{name}-{container_name}{suffix}.log"), &said)?;
            }
        }
    }
    Ok(())
}
