//! The API server, scheduler and controllers.
