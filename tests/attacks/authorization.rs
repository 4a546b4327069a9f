//! Requests that authorization could understand otherwise than the handler.
