//! A real control plane: what it accepts of ours, and that nothing of it stays.

use std::path::Path;
use torus_e2e::kube::ControlPlane;

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn a_control_plane_comes_up_takes_our_definitions_without_a_warning_and_goes() {
    let mut control = ControlPlane::start().unwrap();
    let directory = control.run().directory().to_path_buf();
    for crd in ["torusclusters", "torusvolumes"] {
        let text = std::fs::read_to_string(repository().join(format!("crds/{crd}.yaml"))).unwrap();
        let said = control.kubectl().apply(&text).unwrap();
        assert!(said.contains("created") && !said.to_lowercase().contains("warning"), "{said}");
        let crd = format!("{crd}.torus.storage");
        let limit = std::time::Duration::from_secs(30);
        let is_established = |crd: &serde_json::Value| torus_e2e::kube::kubectl::is_true(crd, "Established");
        let crd = control.kubectl().until(["crd", &crd], "it is established", limit, is_established).unwrap();
        let schema = torus_e2e::kube::kubectl::condition(&crd, "NonStructuralSchema");
        assert!(schema.is_none(), "{schema:?}");
    }
    let refused = control
        .kubectl()
        .apply("apiVersion: torus.storage/v1alpha1\nkind: TorusVolume\nmetadata: {name: x}\nspec: {size: \"0\"}\n");
    assert!(refused.is_err(), "{refused:?}");
    control.is_whole().unwrap();
    drop(control);
    assert!(!directory.exists());
}
