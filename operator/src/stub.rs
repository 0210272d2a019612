//! An apiserver that answers what a test says, and remembers what it was asked.

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri, header};
use kube::{Client, Config};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub body: Value,
}

/// It is there as long as the test's runtime is.
pub struct Stub {
    pub client: Client,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Stub {
    /// `answer` gives the object, or the code of the refusal, for the last of the calls so far.
    pub async fn start(answer: impl Fn(&[Call]) -> Result<Value, u16> + Send + Sync + 'static) -> Stub {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let (kept, answer) = (calls.clone(), Arc::new(answer));
        let handle = move |method: Method, uri: Uri, body: Bytes| {
            let (kept, answer) = (kept.clone(), answer.clone());
            async move {
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let mut calls = kept.lock().unwrap();
                calls.push(Call { method: method.to_string(), path: uri.path().to_owned(), body });
                let refusal =
                    |code: u16| (code, json!({"kind": "Status", "status": "Failure", "reason": "Test", "code": code}));
                let (code, body) = answer(&calls).map_or_else(refusal, |object| (200, object));
                let json = [(header::CONTENT_TYPE, "application/json")];
                (StatusCode::from_u16(code).unwrap(), json, body.to_string())
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        // There is no TLS, and nobody has to be trusted.
        config.root_cert = Some(Vec::new());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handle)).await });
        Stub { client: Client::try_from(config).unwrap(), calls }
    }

    /// What it was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}
