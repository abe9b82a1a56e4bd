//! OpenAPI documents, generated from the types of requests and answers.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::server::HttpMethod;

/// Generates the schema of a type.
type Describe = fn(&mut SchemaGenerator) -> Value;

/// Description of a call.
#[derive(Clone, Copy)]
pub struct CallSpec {
    name: &'static str,
    verb: HttpMethod,
    summary: &'static str,
    body: Option<Describe>,
    /// Whether the body may be left out.
    optional: bool,
    /// Content of the answer with status 200.
    answer: Option<(&'static str, Describe)>,
    /// Status and meaning of an answer without a body.
    done: Option<(u16, &'static str)>,
}

/// Description of an API.
pub struct Description<'a> {
    /// The name of the program.
    pub title: &'a str,
    /// One sentence about the program.
    pub description: &'a str,
    /// Error statuses and their meaning.
    pub errors: &'a [(&'a str, &'a str)],
    /// All calls.
    pub calls: &'a [CallSpec],
}

const JSON: &str = "application/json";

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

impl CallSpec {
    /// A call that changes nothing and is answered with a `T`. A part of the name in braces is a path parameter.
    #[must_use]
    pub fn get<T: JsonSchema>(name: &'static str, summary: &'static str) -> Self {
        Self {
            name,
            verb: HttpMethod::Get,
            summary,
            body: None,
            optional: false,
            answer: Some((JSON, of::<T>)),
            done: None,
        }
    }

    /// A call that changes something. It has no body, and its answer is empty.
    #[must_use]
    pub fn put(name: &'static str, summary: &'static str) -> Self {
        Self {
            name,
            verb: HttpMethod::Put,
            summary,
            body: None,
            optional: false,
            answer: None,
            done: Some((204, "Done")),
        }
    }

    /// Adds a body.
    #[must_use]
    pub fn takes<T: JsonSchema>(self) -> Self {
        Self {
            body: Some(of::<T>),
            ..self
        }
    }

    /// Adds an optional body.
    #[must_use]
    pub fn may_take<T: JsonSchema>(self) -> Self {
        Self {
            optional: true,
            ..self.takes::<T>()
        }
    }

    /// Sets the answer to a `T`.
    #[must_use]
    pub fn gives<T: JsonSchema>(self) -> Self {
        Self {
            answer: Some((JSON, of::<T>)),
            done: None,
            ..self
        }
    }

    /// Sets the answer to a `T`, or to an empty answer with `status`.
    #[must_use]
    pub fn gives_or<T: JsonSchema>(self, status: u16, meaning: &'static str) -> Self {
        Self {
            answer: Some((JSON, of::<T>)),
            done: Some((status, meaning)),
            ..self
        }
    }

    /// Sets status and meaning of the empty answer.
    #[must_use]
    pub fn done(self, status: u16, meaning: &'static str) -> Self {
        Self {
            done: Some((status, meaning)),
            ..self
        }
    }

    /// A call that is answered with server-sent events whose data are `T`s.
    #[must_use]
    pub fn events<T: JsonSchema>(name: &'static str, summary: &'static str) -> Self {
        Self {
            answer: Some(("text/event-stream", of::<T>)),
            ..Self::get::<T>(name, summary)
        }
    }

    /// The name up to the path parameter, in the form that a [`Handler`](super::Handler) uses.
    #[must_use]
    pub fn route(&self) -> (&'static str, HttpMethod) {
        let fixed = self.name.split('{').next().unwrap_or(self.name);
        (fixed, self.verb)
    }

    fn path(&self, errors: &[(&str, &str)], generator: &mut SchemaGenerator) -> Value {
        let mut responses = Map::new();
        if let Some((status, meaning)) = self.done {
            responses.insert(status.to_string(), json!({ "description": meaning }));
        }
        if let Some((kind, describe)) = self.answer {
            let schema = describe(generator);
            let answer =
                json!({ "description": "Done", "content": { kind: { "schema": schema } } });
            responses.insert("200".to_owned(), answer);
        }
        for (status, _) in errors {
            let reference = format!("#/components/responses/E{status}");
            responses.insert((*status).to_owned(), json!({ "$ref": reference }));
        }
        let mut operation = Map::from_iter([
            (
                "operationId".to_owned(),
                json!(self.route().0.trim_end_matches('/')),
            ),
            ("summary".to_owned(), json!(self.summary)),
            ("responses".to_owned(), Value::Object(responses)),
        ]);
        if let Some(describe) = self.body {
            let schema = describe(generator);
            let body =
                json!({ "required": !self.optional, "content": { JSON: { "schema": schema } } });
            operation.insert("requestBody".to_owned(), body);
        }
        let named = self
            .name
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'));
        if let Some((parameter, _)) = named {
            let text = json!({ "type": "string" });
            let parameter =
                json!([{ "name": parameter, "in": "path", "required": true, "schema": text }]);
            operation.insert("parameters".to_owned(), parameter);
        }
        let verb = match self.verb {
            HttpMethod::Get => "get",
            HttpMethod::Put => "put",
        };
        json!({ verb: operation })
    }
}

impl Description<'_> {
    /// The OpenAPI document.
    #[must_use]
    pub fn openapi(&self) -> Value {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let mut generator = settings.into_generator();
        let calls = self.calls.iter();
        let paths: Map<String, Value> = calls
            .map(|call| {
                let path = call.path(self.errors, &mut generator);
                (format!("/{}", call.name), path)
            })
            .collect();
        let errors = self.errors.iter();
        let responses: Map<String, Value> = errors
            .map(|(status, meaning)| (format!("E{status}"), error(meaning)))
            .collect();
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": self.title,
                "description": self.description,
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": "Apache-2.0 OR BSD-3-Clause", "identifier": "Apache-2.0 OR BSD-3-Clause" },
            },
            "servers": [{ "url": "http://localhost/api/v1" }],
            "paths": paths,
            "components": {
                "responses": responses,
                "schemas": generator.take_definitions(true),
            },
        })
    }
}

/// Errors are lists of messages, the root cause last.
fn error(meaning: &str) -> Value {
    let schema = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    json!({ "description": meaning, "content": { JSON: { "schema": schema } } })
}
