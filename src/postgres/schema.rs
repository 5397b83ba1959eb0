//! The tables as diesel sees them (made by `diesel print-schema`, see diesel.toml).
#![expect(missing_docs, reason = "generated; the columns are described in the migrations")]

diesel::table! {
    monitor_events (id) {
        id -> Int8,
        ts -> Timestamptz,
        #[sql_name = "type"]
        type_ -> Text,
        worker -> Nullable<Text>,
        severity -> Nullable<Text>,
        detail -> Nullable<Text>,
        payload -> Nullable<Jsonb>,
    }
}
