//! Certificates of one Kubernetes: an authority of its own, and what it signs.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The authority, and the directory that all files go to.
pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The files of a certificate.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Pki {
    /// A new authority. Its certificate is `ca.crt`; the keys of service accounts are `sa.key` and `sa.pub`.
    pub fn make(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "torus-e2e");
        let key = KeyPair::generate().context("cannot make a key")?;
        let issuer = CertifiedIssuer::self_signed(params, key).context("cannot make an authority")?;
        let pki = Self { issuer, directory: directory.to_path_buf() };
        pki.write("ca.crt", &pki.issuer.pem())?;
        let accounts = KeyPair::generate().context("cannot make a key")?;
        pki.write("sa.key", &accounts.serialize_pem())?;
        pki.write("sa.pub", &accounts.public_key_pem())?;
        Ok(pki)
    }

    /// A file of it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A certificate for the user `name` in `group`; and for a server at `hosts`.
    pub fn sign(&self, name: &str, group: Option<&str>, hosts: &[String]) -> Result<Files> {
        let mut params = CertificateParams::new(hosts).with_context(|| format!("bad names in {hosts:?}"))?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().context("cannot make a key")?;
        let cert = params.signed_by(&key, &self.issuer).with_context(|| format!("cannot sign for {name}"))?;
        let file = name.replace(':', "-");
        Ok(Files {
            cert: self.write(&format!("{file}.crt"), &cert.pem())?,
            key: self.write(&format!("{file}.key"), &key.serialize_pem())?,
        })
    }

    /// The kubeconfig of a user, for an apiserver at `url`.
    pub fn kubeconfig(&self, user: &str, group: Option<&str>, url: &str) -> Result<PathBuf> {
        let files = self.sign(user, group, &[])?;
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "torus", "cluster": {"server": url, "certificate-authority": self.file("ca.crt")}}],
            "users": [{"name": user, "user": {"client-certificate": files.cert, "client-key": files.key}}],
            "contexts": [{"name": "torus", "context": {"cluster": "torus", "user": user}}],
            "current-context": "torus",
        });
        self.write(&format!("{}.kubeconfig", user.replace(':', "-")), &format!("{config:#}\n"))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.file(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context("cannot hide a key")?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_user_gets_what_it_needs_to_log_in() {
        let scratch = Scratch::new("pki-test").unwrap();
        let pki = Pki::make(scratch.path()).unwrap();
        let path = pki.kubeconfig("system:node:n1", Some("system:nodes"), "https://127.0.0.1:1").unwrap();
        let config: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let cert = config["users"][0]["user"]["client-certificate"].as_str().unwrap();
        assert!(fs::read_to_string(cert).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(fs::read_to_string(scratch.path().join("sa.pub")).unwrap().contains("PUBLIC KEY"));
    }
}
