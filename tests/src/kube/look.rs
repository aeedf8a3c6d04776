//! Looking at what a cluster holds: objects as JSON, and waiting for what they should come to.

use std::time::Duration;

use anyhow::{Result, anyhow};
use hyper::Request;
use serde_json::Value;

use super::KubeCluster;

/// How much of an object an error shows, in characters.
const SHOWN: usize = 3000;

impl KubeCluster {
    /// What the API server has at a path, for example `/api/v1/namespaces/demo/services/httpbin`; null: nothing.
    ///
    /// # Errors
    /// When it answers anything but "here it is" and "there is none".
    pub fn look(&self, path: &str) -> Result<Value> {
        self.in_namespace(async |client| get(&client, path).await)
    }

    /// Waits until what the API server has at a path shows something, and returns that. Null is shown where
    /// nothing is there.
    ///
    /// # Errors
    /// When it does not in time; the error shows what was there.
    pub fn see<T: Send>(
        &self,
        what: &str,
        path: &str,
        patience: Duration,
        mut shows: impl FnMut(&Value) -> Option<T> + Send,
    ) -> Result<T> {
        self.wait_for(what, patience, async |client| {
            let mut now = get(&client, path).await?;
            shows(&now).map(Some).ok_or_else(|| {
                without_managers(&mut now);
                anyhow!("{path} is {}", now.to_string().chars().take(SHOWN).collect::<String>())
            })
        })
    }
}

async fn get(client: &kube::Client, path: &str) -> Result<Value> {
    match client.request::<Value>(Request::get(path).body(Vec::new())?).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Value::Null),
        other => Ok(other?),
    }
}

/// Who wrote which field is long, and tells a reader of errors little.
fn without_managers(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
}

/// A condition of an object, as `Status/Reason`; empty: it has none of that type.
pub fn condition(object: &Value, kind: &str) -> String {
    let text = |field: &str| found(object, kind)[field].as_str().unwrap_or_default().to_owned();
    let (status, reason) = (text("status"), text("reason"));
    if status.is_empty() { String::new() } else { format!("{status}/{reason}") }
}

/// The message of a condition of an object.
pub fn condition_message(object: &Value, kind: &str) -> String {
    found(object, kind)["message"].as_str().unwrap_or_default().to_owned()
}

fn found<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    let of_kind = |condition: &&Value| condition["type"] == kind;
    conditions.into_iter().flatten().find(of_kind).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_condition_is_found_by_its_type() {
        let object = json!({"status": {"conditions": [
            {"type": "Valid", "status": "True", "reason": "Valid", "message": ""},
            {"type": "Conflict", "status": "False", "reason": "NoConflicts", "message": "all agree"},
        ]}});
        assert_eq!(condition(&object, "Conflict"), "False/NoConflicts");
        assert_eq!(condition_message(&object, "Conflict"), "all agree");
        assert_eq!(condition(&object, "Ready"), "");
        assert_eq!(condition(&Value::Null, "Ready"), "");
    }
}
