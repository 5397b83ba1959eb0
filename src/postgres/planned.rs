//! Statements that are asked again and again: what `sql_query` sends, Postgres parses and plans every time, in three
//! trips; these once for each connection, in one trip from then on.

/// Declares a statement without parameters and the types of its columns. Give columns of tables that are not the
/// monitor's own a type in the statement: a plan that is kept must not find another one.
macro_rules! planned {
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

pub(super) use planned;
