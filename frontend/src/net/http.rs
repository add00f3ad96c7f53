//! One request, one answer, and what went wrong in words.

use app::api::{ApiProblem, ErrorBody};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{RequestInit, Response};

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Trouble {
    #[error("The server does not answer. It may have been stopped; this page keeps what you did")]
    Offline,
    #[error("{}", .0.message)]
    Refused(ApiProblem),
    #[error("The server's answer could not be read ({0}). Reload the page: it may be from another version")]
    Unreadable(String),
}

impl Trouble {
    /// For a line of its own.
    pub fn sentence(&self) -> String {
        app::words::sentence(&self.to_string())
    }

    /// Every problem with its field, when the server named fields.
    pub fn problems(&self) -> Vec<ApiProblem> {
        match self {
            Self::Refused(problem) if problem.problems.is_empty() => vec![problem.clone()],
            Self::Refused(problem) => problem.problems.clone(),
            _ => Vec::new(),
        }
    }
}

/// What a request has brought so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Fetched<T> {
    #[default]
    Pending,
    Ready(T),
    Failed(Trouble),
}

impl<T> Fetched<T> {
    pub fn ready(&self) -> Option<&T> {
        match self {
            Self::Ready(value) => Some(value),
            _ => None,
        }
    }
}

impl<T> From<Result<T, Trouble>> for Fetched<T> {
    fn from(result: Result<T, Trouble>) -> Self {
        match result {
            Ok(value) => Self::Ready(value),
            Err(trouble) => Self::Failed(trouble),
        }
    }
}

pub async fn get<T: DeserializeOwned>(path: &str) -> Result<T, Trouble> {
    read(send("GET", path, None).await?).await
}

pub async fn post<T: DeserializeOwned>(path: &str, body: &impl Serialize) -> Result<T, Trouble> {
    let json = serde_json::to_string(body).map_err(|e| Trouble::Unreadable(e.to_string()))?;
    read(send("POST", path, Some(json)).await?).await
}

/// For what is answered with nothing.
pub async fn put(path: &str, body: &impl Serialize) -> Result<(), Trouble> {
    let json = serde_json::to_string(body).map_err(|e| Trouble::Unreadable(e.to_string()))?;
    done(send("PUT", path, Some(json)).await?).await
}

pub async fn delete(path: &str) -> Result<(), Trouble> {
    done(send("DELETE", path, None).await?).await
}

async fn done(response: Response) -> Result<(), Trouble> {
    if response.ok() {
        return Ok(());
    }
    Err(refusal(&response, &text(&response).await?))
}

async fn send(method: &str, path: &str, json: Option<String>) -> Result<Response, Trouble> {
    let init = RequestInit::new();
    init.set_method(method);
    if let Some(json) = json {
        init.set_body(&JsValue::from_str(&json));
        let headers = web_sys::Headers::new().map_err(|_| Trouble::Offline)?;
        headers
            .set("content-type", "application/json")
            .map_err(|_| Trouble::Offline)?;
        init.set_headers(&headers);
    }
    let answer = JsFuture::from(leptos::prelude::window().fetch_with_str_and_init(path, &init)).await;
    // fetch rejects only when no answer came.
    let answer = answer.map_err(|_| Trouble::Offline)?;
    answer.dyn_into().map_err(|_| Trouble::Offline)
}

async fn text(response: &Response) -> Result<String, Trouble> {
    let promise = response.text().map_err(|_| Trouble::Offline)?;
    let text = JsFuture::from(promise).await.map_err(|_| Trouble::Offline)?;
    Ok(text.as_string().unwrap_or_default())
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Trouble> {
    let body = text(&response).await?;
    if response.ok() {
        serde_json::from_str(&body).map_err(|e| Trouble::Unreadable(e.to_string()))
    } else {
        Err(refusal(&response, &body))
    }
}

fn refusal(response: &Response, body: &str) -> Trouble {
    match serde_json::from_str::<ErrorBody>(body) {
        Ok(body) => Trouble::Refused(body.error),
        Err(_) => Trouble::Unreadable(format!("status {}", response.status())),
    }
}
