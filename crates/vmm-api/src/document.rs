//! OpenAPI documents of APIs, made from the types that are parsed and answered.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::server::Verb;

/// How a type is described.
type Describe = fn(&mut SchemaGenerator) -> Value;

/// A call as a client sees it.
#[derive(Clone, Copy)]
pub struct CallSpec {
    name: &'static str,
    verb: Verb,
    summary: &'static str,
    body: Option<Describe>,
    /// Whether the call does without its body.
    optional: bool,
    /// What is in the body of the answer 200.
    answer: Option<(&'static str, Describe)>,
    /// What an answer without a body means, and its status.
    done: Option<(u16, &'static str)>,
}

/// An API as a client sees it.
pub struct Description<'a> {
    /// The program that answers.
    pub title: &'a str,
    /// What it is, in a sentence.
    pub description: &'a str,
    /// Statuses that say no, and what they mean.
    pub errors: &'a [(&'a str, &'a str)],
    /// All calls.
    pub calls: &'a [CallSpec],
}

const JSON: &str = "application/json";

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

impl CallSpec {
    /// A call that changes nothing and is answered with a `T`. What its name has in braces is a part of the path.
    #[must_use]
    pub fn get<T: JsonSchema>(name: &'static str, summary: &'static str) -> Self {
        Self {
            name,
            verb: Verb::Get,
            summary,
            body: None,
            optional: false,
            answer: Some((JSON, of::<T>)),
            done: None,
        }
    }

    /// A call that has something done, and has no body and no answer but that it was.
    #[must_use]
    pub fn put(name: &'static str, summary: &'static str) -> Self {
        Self {
            name,
            verb: Verb::Put,
            summary,
            body: None,
            optional: false,
            answer: None,
            done: Some((204, "Done")),
        }
    }

    /// The same with a body.
    #[must_use]
    pub fn takes<T: JsonSchema>(self) -> Self {
        Self {
            body: Some(of::<T>),
            ..self
        }
    }

    /// The same with a body that may be left out.
    #[must_use]
    pub fn may_take<T: JsonSchema>(self) -> Self {
        Self {
            optional: true,
            ..self.takes::<T>()
        }
    }

    /// The same, answered with a `T` and nothing else.
    #[must_use]
    pub fn gives<T: JsonSchema>(self) -> Self {
        Self {
            answer: Some((JSON, of::<T>)),
            done: None,
            ..self
        }
    }

    /// The same, answered with a `T`, or with a status that means something else.
    #[must_use]
    pub fn gives_or<T: JsonSchema>(self, status: u16, meaning: &'static str) -> Self {
        Self {
            answer: Some((JSON, of::<T>)),
            done: Some((status, meaning)),
            ..self
        }
    }

    /// The same with another status, or another meaning, of an answer without a body.
    #[must_use]
    pub fn done(self, status: u16, meaning: &'static str) -> Self {
        Self {
            done: Some((status, meaning)),
            ..self
        }
    }

    /// A call that is answered with server-sent events, whose data are `T`s.
    #[must_use]
    pub fn events<T: JsonSchema>(name: &'static str, summary: &'static str) -> Self {
        Self {
            answer: Some(("text/event-stream", of::<T>)),
            ..Self::get::<T>(name, summary)
        }
    }

    /// The name up to what differs from call to call, as a [`Desk`](super::Desk) has it.
    #[must_use]
    pub fn route(&self) -> (&'static str, Verb) {
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
            Verb::Get => "get",
            Verb::Put => "put",
        };
        json!({ verb: operation })
    }
}

impl Description<'_> {
    /// The document.
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

/// Errors are lists of messages, from the top to the cause.
fn error(meaning: &str) -> Value {
    let schema = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    json!({ "description": meaning, "content": { JSON: { "schema": schema } } })
}
