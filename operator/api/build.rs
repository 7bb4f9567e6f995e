//! Compiles `proto/control.proto` without a `protoc` on the machine.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/control.proto");
    let descriptors = protox::compile(["proto/control.proto"], ["proto"])?;
    // What carries secrets says by hand what may be shown of it.
    let secret = ["CreatedKey", "Credential", "ModelsPull", "SetSecretRequest"];
    let secret = secret.map(|message| format!(".tandem.control.v1alpha1.{message}"));
    tonic_prost_build::configure()
        .build_transport(true)
        .skip_debug(secret)
        // One for all hosts, and as large as a system's whole bundle.
        .bytes(".tandem.control.v1alpha1.Supply.extra_ca_pem")
        .compile_fds(descriptors)?;
    Ok(())
}
