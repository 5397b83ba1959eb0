//! Prepared statements for frequent queries. Postgres parses and plans each `sql_query` again, in three round trips; these are
//! prepared once per connection and then need one.

/// Declares a statement without parameters, and the types of its columns. Cast columns of tables that the monitor does not own,
/// since a cached plan must not change its result types.
macro_rules! prepared {
    ($(#[$about:meta])* $name:ident, ($($column:ty),+), $sql:expr) => {
        $(#[$about])*
        #[derive(diesel::query_builder::QueryId)]
        struct $name;

        impl diesel::query_builder::Query for $name {
            type SqlType = ($($column,)+);
        }

        impl diesel::query_builder::QueryFragment<diesel::pg::Pg> for $name {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
            ) -> diesel::QueryResult<()> {
                out.push_sql($sql);
                Ok(())
            }
        }
    };
}

pub(super) use prepared;
