//! Envoy types, and YAML or JSON with `@type` to protobuf and back, with file, line and column.
