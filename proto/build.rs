//! Compiles the services with protox, so that no protoc is needed.

const FILES: [&str; 4] =
    ["torus/agent.proto", "torus/node.proto", "csi/v1/csi.proto", "pluginregistration/v1/api.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    tonic_prost_build::configure().compile_fds(protox::compile(FILES, ["."])?)?;
    Ok(())
}
