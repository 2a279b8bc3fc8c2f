//! The hash that ring-hash and Maglev clusters choose an endpoint by, exactly as Envoy combines it from `hash_policy`.
