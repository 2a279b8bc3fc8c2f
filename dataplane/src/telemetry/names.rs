//! Every metric name, once, as Envoy spells it. A variant is the name in CamelCase.
//!
//! Names that depend on what happens (`upstream_rq_503`, `upstream_rq_5xx`) are made by
//! [`Stats::response_code`](super::counters::Stats::response_code), names that depend on the worker (`worker_0.downstream_cx_total`)
//! by the reader. A stat marked `late` shows only once it was recorded, as in Envoy. Histograms stand last in their group.

use super::counters::{CodeScope, StatDefinition, StatGroup, StatKind};

macro_rules! stat_group {
    (
        $(#[$doc:meta])*
        $group:ident { $($variant:ident = $kind:ident $name:literal $($late:ident)?,)* }
        $(codes { $($prefix:literal $completed:ident,)* })?
        $(by_worker { $($worker_stat:ident,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $group { $(#[doc = concat!("`", $name, "`")] $variant,)* }
        impl StatGroup for $group {
            const DEFINITIONS: &'static [StatDefinition] = &[$(StatDefinition {
                name: $name,
                kind: StatKind::$kind,
                late: !stringify!($($late)?).is_empty(),
            },)*];
            $(const CODE_SCOPES: &'static [CodeScope] = &[$(CodeScope {
                prefix: $prefix,
                completed_late: matches!(stringify!($completed).as_bytes(), b"late"),
            },)*];)?
            $(const BY_WORKER: &'static [Self] = &[$($group::$worker_stat,)*];)?
            #[inline]
            fn index(self) -> usize { self as usize }
        }
    };
}

stat_group! {
    /// `listener.<address>.`
    ListenerStat {
        DownstreamCxActive = Gauge "downstream_cx_active",
        DownstreamCxDestroy = Counter "downstream_cx_destroy",
        DownstreamCxOverflow = Counter "downstream_cx_overflow",
        DownstreamCxOverloadReject = Counter "downstream_cx_overload_reject",
        DownstreamCxTotal = Counter "downstream_cx_total",
        DownstreamCxTransportSocketConnectTimeout = Counter "downstream_cx_transport_socket_connect_timeout",
        DownstreamGlobalCxOverflow = Counter "downstream_global_cx_overflow",
        DownstreamListenerFilterError = Counter "downstream_listener_filter_error",
        DownstreamListenerFilterRemoteClose = Counter "downstream_listener_filter_remote_close",
        DownstreamPreCxActive = Gauge "downstream_pre_cx_active",
        DownstreamPreCxTimeout = Counter "downstream_pre_cx_timeout",
        ExtensionConfigMissing = Counter "extension_config_missing",
        NetworkExtensionConfigMissing = Counter "network_extension_config_missing",
        NoFilterChainMatch = Counter "no_filter_chain_match",
        ConnectionsAcceptedPerSocketEvent = Histogram "connections_accepted_per_socket_event",
        DownstreamCxLengthMs = Histogram "downstream_cx_length_ms",
    }
    by_worker { DownstreamCxActive, DownstreamCxTotal, }
}

stat_group! {
    /// `tcp.<stat_prefix>.`
    TcpStat {
        DownstreamCxNoRoute = Counter "downstream_cx_no_route",
        DownstreamCxRxBytesTotal = Counter "downstream_cx_rx_bytes_total",
        DownstreamCxTotal = Counter "downstream_cx_total",
        DownstreamCxTxBytesTotal = Counter "downstream_cx_tx_bytes_total",
        IdleTimeout = Counter "idle_timeout",
        MaxDownstreamConnectionDuration = Counter "max_downstream_connection_duration",
    }
}

stat_group! {
    /// `tls_inspector.`
    TlsInspectorStat {
        AlpnFound = Counter "alpn_found",
        AlpnNotFound = Counter "alpn_not_found",
        ClientHelloTooBig = Counter "client_hello_too_big",
        SniFound = Counter "sni_found",
        SniNotFound = Counter "sni_not_found",
        TlsFound = Counter "tls_found",
        TlsNotFound = Counter "tls_not_found",
    }
}

stat_group! {
    /// `proxy_proto.<stat_prefix>.`
    ProxyProtocolStat {
        NotFoundAllowed = Counter "not_found_allowed",
        NotFoundDisallowed = Counter "not_found_disallowed",
        V1Disallowed = Counter "versions.v1.disallowed",
        V1Error = Counter "versions.v1.error",
        V1Found = Counter "versions.v1.found",
        V2Disallowed = Counter "versions.v2.disallowed",
        V2Error = Counter "versions.v2.error",
        V2Found = Counter "versions.v2.found",
    }
}

stat_group! {
    /// `connection_limit.<stat_prefix>.`
    ConnectionLimitStat {
        ActiveConnections = Gauge "active_connections",
        LimitedConnections = Counter "limited_connections",
    }
}

stat_group! {
    /// `local_rate_limit.<stat_prefix>.`
    LocalRateLimitStat {
        RateLimited = Counter "rate_limited",
    }
}

stat_group! {
    /// `<stat_prefix>rbac.`
    RbacStat {
        Allowed = Counter "allowed",
        Denied = Counter "denied",
    }
}

stat_group! {
    /// `<stat_prefix>rbac.<shadow_rules_stat_prefix>`
    RbacShadowStat {
        ShadowAllowed = Counter "shadow_allowed",
        ShadowDenied = Counter "shadow_denied",
    }
}

stat_group! {
    /// `http_inspector.`
    HttpInspectorStat {
        Http10Found = Counter "http10_found",
        Http11Found = Counter "http11_found",
        Http2Found = Counter "http2_found",
        HttpNotFound = Counter "http_not_found",
        ReadError = Counter "read_error",
    }
}

stat_group! {
    /// `listener.<address>.ssl.` and `cluster.<name>.ssl.`
    TlsStat {
        ConnectionError = Counter "connection_error",
        FailVerifyCertHash = Counter "fail_verify_cert_hash",
        FailVerifyError = Counter "fail_verify_error",
        FailVerifyNoCert = Counter "fail_verify_no_cert",
        FailVerifySan = Counter "fail_verify_san",
        CertificatesReloaded = Counter "certificates_reloaded" late,
        CertificatesReloadFailed = Counter "certificates_reload_failed" late,
        Handshake = Counter "handshake",
        NoCertificate = Counter "no_certificate",
        OcspStapleFailed = Counter "ocsp_staple_failed",
        OcspStapleOmitted = Counter "ocsp_staple_omitted",
        OcspStapleRequests = Counter "ocsp_staple_requests",
        OcspStapleResponses = Counter "ocsp_staple_responses",
        SessionReused = Counter "session_reused",
        WasKeyUsageInvalid = Counter "was_key_usage_invalid",
        CiphersEcdsaAes128 = Counter "ciphers.ECDHE-ECDSA-AES128-GCM-SHA256" late,
        CiphersEcdsaAes256 = Counter "ciphers.ECDHE-ECDSA-AES256-GCM-SHA384" late,
        CiphersEcdsaChacha = Counter "ciphers.ECDHE-ECDSA-CHACHA20-POLY1305" late,
        CiphersRsaAes128 = Counter "ciphers.ECDHE-RSA-AES128-GCM-SHA256" late,
        CiphersRsaAes256 = Counter "ciphers.ECDHE-RSA-AES256-GCM-SHA384" late,
        CiphersRsaChacha = Counter "ciphers.ECDHE-RSA-CHACHA20-POLY1305" late,
        CiphersTlsAes128 = Counter "ciphers.TLS_AES_128_GCM_SHA256" late,
        CiphersTlsAes256 = Counter "ciphers.TLS_AES_256_GCM_SHA384" late,
        CiphersTlsChacha = Counter "ciphers.TLS_CHACHA20_POLY1305_SHA256" late,
        CurvesMlkem = Counter "curves.X25519MLKEM768" late,
        CurvesP256 = Counter "curves.P-256" late,
        CurvesP384 = Counter "curves.P-384" late,
        CurvesX25519 = Counter "curves.X25519" late,
        VersionsTls12 = Counter "versions.TLSv1.2" late,
        VersionsTls13 = Counter "versions.TLSv1.3" late,
    }
}

stat_group! {
    /// `listener.<address>.server_ssl_socket_factory.` and `cluster.<name>.client_ssl_socket_factory.`
    TlsFactoryStat {
        DownstreamContextSecretsNotReady = Counter "downstream_context_secrets_not_ready",
        SslContextUpdateBySds = Counter "ssl_context_update_by_sds",
        UpstreamContextSecretsNotReady = Counter "upstream_context_secrets_not_ready",
    }
}

impl TlsStat {
    /// The counter of a protocol version.
    pub fn version(name: &str) -> Option<Self> {
        Self::under("versions.", name)
    }

    /// The counter of a cipher suite.
    pub fn cipher(name: &str) -> Option<Self> {
        Self::under("ciphers.", name)
    }

    /// The counter of a key-exchange group.
    pub fn curve(name: &str) -> Option<Self> {
        Self::under("curves.", name)
    }

    fn under(prefix: &str, name: &str) -> Option<Self> {
        use TlsStat::*;
        let all = [
            CiphersEcdsaAes128,
            CiphersEcdsaAes256,
            CiphersEcdsaChacha,
            CiphersRsaAes128,
            CiphersRsaAes256,
            CiphersRsaChacha,
            CiphersTlsAes128,
            CiphersTlsAes256,
            CiphersTlsChacha,
            CurvesMlkem,
            CurvesP256,
            CurvesP384,
            CurvesX25519,
            VersionsTls12,
            VersionsTls13,
        ];
        all.into_iter().find(|stat| {
            let known = Self::DEFINITIONS.get(stat.index()).map(|definition| definition.name);
            known.and_then(|known| known.strip_prefix(prefix)) == Some(name)
        })
    }
}

stat_group! {
    /// `listener.<address>.http.<stat_prefix>.`
    ListenerHttpStat {
        DownstreamRq1xx = Counter "downstream_rq_1xx",
        DownstreamRq2xx = Counter "downstream_rq_2xx",
        DownstreamRq3xx = Counter "downstream_rq_3xx",
        DownstreamRq4xx = Counter "downstream_rq_4xx",
        DownstreamRq5xx = Counter "downstream_rq_5xx",
        DownstreamRqCompleted = Counter "downstream_rq_completed",
    }
}

stat_group! {
    /// `http.<stat_prefix>.`
    HttpStat {
        DownstreamCxActive = Gauge "downstream_cx_active",
        DownstreamCxDelayedCloseTimeout = Counter "downstream_cx_delayed_close_timeout",
        DownstreamCxDestroy = Counter "downstream_cx_destroy",
        DownstreamCxDestroyActiveRq = Counter "downstream_cx_destroy_active_rq",
        DownstreamCxDestroyLocal = Counter "downstream_cx_destroy_local",
        DownstreamCxDestroyLocalActiveRq = Counter "downstream_cx_destroy_local_active_rq",
        DownstreamCxDestroyRemote = Counter "downstream_cx_destroy_remote",
        DownstreamCxDestroyRemoteActiveRq = Counter "downstream_cx_destroy_remote_active_rq",
        DownstreamCxDrainClose = Counter "downstream_cx_drain_close",
        DownstreamCxHttp1Active = Gauge "downstream_cx_http1_active",
        DownstreamCxHttp1SoftDrain = Gauge "downstream_cx_http1_soft_drain",
        DownstreamCxHttp1Total = Counter "downstream_cx_http1_total",
        DownstreamCxHttp2Active = Gauge "downstream_cx_http2_active",
        DownstreamCxHttp2Total = Counter "downstream_cx_http2_total",
        DownstreamCxHttp3Active = Gauge "downstream_cx_http3_active",
        DownstreamCxHttp3Total = Counter "downstream_cx_http3_total",
        DownstreamCxIdleTimeout = Counter "downstream_cx_idle_timeout",
        DownstreamCxMaxDurationReached = Counter "downstream_cx_max_duration_reached",
        DownstreamCxMaxRequestsReached = Counter "downstream_cx_max_requests_reached",
        DownstreamCxOverloadDisableKeepalive = Counter "downstream_cx_overload_disable_keepalive",
        DownstreamCxProtocolError = Counter "downstream_cx_protocol_error",
        DownstreamCxRxBytesBuffered = Gauge "downstream_cx_rx_bytes_buffered",
        DownstreamCxRxBytesTotal = Counter "downstream_cx_rx_bytes_total",
        DownstreamCxSslActive = Gauge "downstream_cx_ssl_active",
        DownstreamCxSslTotal = Counter "downstream_cx_ssl_total",
        DownstreamCxTotal = Counter "downstream_cx_total",
        DownstreamCxTxBytesBuffered = Gauge "downstream_cx_tx_bytes_buffered",
        DownstreamCxTxBytesTotal = Counter "downstream_cx_tx_bytes_total",
        DownstreamCxUpgradesActive = Gauge "downstream_cx_upgrades_active",
        DownstreamCxUpgradesTotal = Counter "downstream_cx_upgrades_total",
        DownstreamFlowControlPausedReadingTotal = Counter "downstream_flow_control_paused_reading_total",
        DownstreamFlowControlResumedReadingTotal = Counter "downstream_flow_control_resumed_reading_total",
        DownstreamRq1xx = Counter "downstream_rq_1xx",
        DownstreamRq2xx = Counter "downstream_rq_2xx",
        DownstreamRq3xx = Counter "downstream_rq_3xx",
        DownstreamRq4xx = Counter "downstream_rq_4xx",
        DownstreamRq5xx = Counter "downstream_rq_5xx",
        DownstreamRqActive = Gauge "downstream_rq_active",
        DownstreamRqCompleted = Counter "downstream_rq_completed",
        DownstreamRqFailedPathNormalization = Counter "downstream_rq_failed_path_normalization",
        DownstreamRqHeaderTimeout = Counter "downstream_rq_header_timeout",
        DownstreamRqHttp1Total = Counter "downstream_rq_http1_total",
        DownstreamRqHttp2Total = Counter "downstream_rq_http2_total",
        DownstreamRqHttp3Total = Counter "downstream_rq_http3_total",
        DownstreamRqIdleTimeout = Counter "downstream_rq_idle_timeout",
        DownstreamRqMaxDurationReached = Counter "downstream_rq_max_duration_reached",
        DownstreamRqNonRelativePath = Counter "downstream_rq_non_relative_path",
        DownstreamRqOverloadClose = Counter "downstream_rq_overload_close",
        DownstreamRqRedirectedWithNormalizedPath = Counter "downstream_rq_redirected_with_normalized_path",
        DownstreamRqRejectedViaIpDetection = Counter "downstream_rq_rejected_via_ip_detection",
        DownstreamRqResponseBeforeRqComplete = Counter "downstream_rq_response_before_rq_complete",
        DownstreamRqRxReset = Counter "downstream_rq_rx_reset",
        DownstreamRqTimeout = Counter "downstream_rq_timeout",
        DownstreamRqTooLarge = Counter "downstream_rq_too_large",
        DownstreamRqTooManyPrematureResets = Counter "downstream_rq_too_many_premature_resets",
        DownstreamRqTotal = Counter "downstream_rq_total",
        DownstreamRqTxReset = Counter "downstream_rq_tx_reset",
        DownstreamRqWsOnNonWsRoute = Counter "downstream_rq_ws_on_non_ws_route",
        NoCluster = Counter "no_cluster",
        NoRoute = Counter "no_route",
        PassthroughInternalRedirectBadLocation = Counter "passthrough_internal_redirect_bad_location",
        PassthroughInternalRedirectNoRoute = Counter "passthrough_internal_redirect_no_route",
        PassthroughInternalRedirectPredicate = Counter "passthrough_internal_redirect_predicate",
        PassthroughInternalRedirectTooManyRedirects = Counter "passthrough_internal_redirect_too_many_redirects",
        PassthroughInternalRedirectUnsafeScheme = Counter "passthrough_internal_redirect_unsafe_scheme",
        RqDirectResponse = Counter "rq_direct_response",
        RqOverloadLocalReply = Counter "rq_overload_local_reply",
        RqRedirect = Counter "rq_redirect",
        RqResetAfterDownstreamResponseStarted = Counter "rq_reset_after_downstream_response_started",
        RqTotal = Counter "rq_total",
        RsTooLarge = Counter "rs_too_large",
        TracingClientEnabled = Counter "tracing.client_enabled",
        TracingHealthCheck = Counter "tracing.health_check",
        TracingNotTraceable = Counter "tracing.not_traceable",
        TracingRandomSampling = Counter "tracing.random_sampling",
        TracingServiceForced = Counter "tracing.service_forced",
        DownstreamCxLengthMs = Histogram "downstream_cx_length_ms",
        DownstreamRqTime = Histogram "downstream_rq_time",
    }
}

stat_group! {
    /// `http1.`: the codec's own, all downstream connections together.
    Http1Stat {
        DroppedHeadersWithUnderscores = Counter "dropped_headers_with_underscores",
        MetadataNotSupportedError = Counter "metadata_not_supported_error",
        RequestsRejectedWithUnderscoresInHeaders = Counter "requests_rejected_with_underscores_in_headers",
        ResponseFlood = Counter "response_flood",
    }
}

stat_group! {
    /// `http2.`: the codec's own, all downstream connections together, and `cluster.<name>.http2.`
    Http2Stat {
        DroppedHeadersWithUnderscores = Counter "dropped_headers_with_underscores",
        GoawaySent = Counter "goaway_sent",
        HeaderOverflow = Counter "header_overflow",
        HeadersCbNoStream = Counter "headers_cb_no_stream",
        InboundEmptyFramesFlood = Counter "inbound_empty_frames_flood",
        InboundPriorityFramesFlood = Counter "inbound_priority_frames_flood",
        InboundResetFlood = Counter "inbound_reset_flood",
        InboundWindowUpdateFramesFlood = Counter "inbound_window_update_frames_flood",
        KeepaliveTimeout = Counter "keepalive_timeout",
        MetadataEmptyFrames = Counter "metadata_empty_frames",
        OutboundControlFlood = Counter "outbound_control_flood",
        OutboundFlood = Counter "outbound_flood",
        RequestsRejectedWithUnderscoresInHeaders = Counter "requests_rejected_with_underscores_in_headers",
        RxMessagingError = Counter "rx_messaging_error",
        RxReset = Counter "rx_reset",
        StreamRefusedErrors = Counter "stream_refused_errors",
        StreamsActive = Gauge "streams_active",
        Trailers = Counter "trailers",
        TxFlushTimeout = Counter "tx_flush_timeout",
        TxReset = Counter "tx_reset",
    }
}

stat_group! {
    /// `cluster.<name>.`
    ClusterStat {
        AssignmentStale = Counter "assignment_stale",
        AssignmentTimeoutReceived = Counter "assignment_timeout_received",
        AssignmentUseCached = Counter "assignment_use_cached",
        BindErrors = Counter "bind_errors",
        CircuitBreakersDefaultCxOpen = Gauge "circuit_breakers.default.cx_open",
        CircuitBreakersDefaultCxPoolOpen = Gauge "circuit_breakers.default.cx_pool_open",
        CircuitBreakersDefaultRemainingCx = Gauge "circuit_breakers.default.remaining_cx" late,
        CircuitBreakersDefaultRemainingCxPools = Gauge "circuit_breakers.default.remaining_cx_pools" late,
        CircuitBreakersDefaultRemainingPending = Gauge "circuit_breakers.default.remaining_pending" late,
        CircuitBreakersDefaultRemainingRetries = Gauge "circuit_breakers.default.remaining_retries" late,
        CircuitBreakersDefaultRemainingRq = Gauge "circuit_breakers.default.remaining_rq" late,
        CircuitBreakersDefaultRqOpen = Gauge "circuit_breakers.default.rq_open",
        CircuitBreakersDefaultRqPendingOpen = Gauge "circuit_breakers.default.rq_pending_open",
        CircuitBreakersDefaultRqRetryOpen = Gauge "circuit_breakers.default.rq_retry_open",
        CircuitBreakersHighCxOpen = Gauge "circuit_breakers.high.cx_open",
        CircuitBreakersHighCxPoolOpen = Gauge "circuit_breakers.high.cx_pool_open",
        CircuitBreakersHighRemainingCx = Gauge "circuit_breakers.high.remaining_cx" late,
        CircuitBreakersHighRemainingCxPools = Gauge "circuit_breakers.high.remaining_cx_pools" late,
        CircuitBreakersHighRemainingPending = Gauge "circuit_breakers.high.remaining_pending" late,
        CircuitBreakersHighRemainingRetries = Gauge "circuit_breakers.high.remaining_retries" late,
        CircuitBreakersHighRemainingRq = Gauge "circuit_breakers.high.remaining_rq" late,
        CircuitBreakersHighRqOpen = Gauge "circuit_breakers.high.rq_open",
        CircuitBreakersHighRqPendingOpen = Gauge "circuit_breakers.high.rq_pending_open",
        CircuitBreakersHighRqRetryOpen = Gauge "circuit_breakers.high.rq_retry_open",
        DefaultTotalMatchCount = Counter "default.total_match_count",
        Http1DroppedHeadersWithUnderscores = Counter "http1.dropped_headers_with_underscores",
        Http1MetadataNotSupportedError = Counter "http1.metadata_not_supported_error",
        Http1RequestsRejectedWithUnderscoresInHeaders = Counter "http1.requests_rejected_with_underscores_in_headers",
        Http1ResponseFlood = Counter "http1.response_flood",
        LbHealthyPanic = Counter "lb_healthy_panic",
        LbLocalClusterNotOk = Counter "lb_local_cluster_not_ok",
        LbRecalculateZoneStructures = Counter "lb_recalculate_zone_structures",
        LbSubsetsActive = Gauge "lb_subsets_active",
        LbSubsetsCreated = Counter "lb_subsets_created",
        LbSubsetsFallback = Counter "lb_subsets_fallback",
        LbSubsetsFallbackPanic = Counter "lb_subsets_fallback_panic",
        LbSubsetsRemoved = Counter "lb_subsets_removed",
        LbSubsetsSelected = Counter "lb_subsets_selected",
        LbZoneClusterTooSmall = Counter "lb_zone_cluster_too_small",
        LbZoneNoCapacityLeft = Counter "lb_zone_no_capacity_left",
        LbZoneRoutingAllDirectly = Counter "lb_zone_routing_all_directly",
        LbZoneRoutingCrossZone = Counter "lb_zone_routing_cross_zone",
        LbZoneRoutingSampled = Counter "lb_zone_routing_sampled",
        MaglevLbMaxEntriesPerHost = Gauge "maglev_lb.max_entries_per_host" late,
        MaglevLbMinEntriesPerHost = Gauge "maglev_lb.min_entries_per_host" late,
        MaxHostWeight = Gauge "max_host_weight",
        MembershipChange = Counter "membership_change",
        MembershipDegraded = Gauge "membership_degraded",
        MembershipExcluded = Gauge "membership_excluded",
        MembershipHealthy = Gauge "membership_healthy",
        MembershipTotal = Gauge "membership_total",
        OriginalDstHostInvalid = Counter "original_dst_host_invalid",
        RetryOrShadowAbandoned = Counter "retry_or_shadow_abandoned",
        RingHashLbMaxHashesPerHost = Gauge "ring_hash_lb.max_hashes_per_host" late,
        RingHashLbMinHashesPerHost = Gauge "ring_hash_lb.min_hashes_per_host" late,
        RingHashLbSize = Gauge "ring_hash_lb.size" late,
        InitFetchTimeout = Counter "init_fetch_timeout" late,
        UpdateAttempt = Counter "update_attempt",
        UpdateEmpty = Counter "update_empty",
        UpdateFailure = Counter "update_failure",
        UpdateNoRebuild = Counter "update_no_rebuild",
        UpdateRejected = Counter "update_rejected" late,
        UpdateSuccess = Counter "update_success",
        UpstreamCxActive = Gauge "upstream_cx_active",
        UpstreamCxCloseNotify = Counter "upstream_cx_close_notify",
        UpstreamCxConnectAttemptsExceeded = Counter "upstream_cx_connect_attempts_exceeded",
        UpstreamCxConnectFail = Counter "upstream_cx_connect_fail",
        UpstreamCxConnectTimeout = Counter "upstream_cx_connect_timeout",
        UpstreamCxConnectWith0Rtt = Counter "upstream_cx_connect_with_0_rtt",
        UpstreamCxDestroy = Counter "upstream_cx_destroy",
        UpstreamCxDestroyLocal = Counter "upstream_cx_destroy_local",
        UpstreamCxDestroyLocalWithActiveRq = Counter "upstream_cx_destroy_local_with_active_rq",
        UpstreamCxDestroyRemote = Counter "upstream_cx_destroy_remote",
        UpstreamCxDestroyRemoteWithActiveRq = Counter "upstream_cx_destroy_remote_with_active_rq",
        UpstreamCxDestroyWithActiveRq = Counter "upstream_cx_destroy_with_active_rq",
        UpstreamCxHttp1Total = Counter "upstream_cx_http1_total",
        UpstreamCxHttp2Total = Counter "upstream_cx_http2_total",
        UpstreamCxHttp3Total = Counter "upstream_cx_http3_total",
        UpstreamCxIdleTimeout = Counter "upstream_cx_idle_timeout",
        UpstreamCxMaxDurationReached = Counter "upstream_cx_max_duration_reached",
        UpstreamCxMaxRequests = Counter "upstream_cx_max_requests",
        UpstreamCxNoneHealthy = Counter "upstream_cx_none_healthy",
        UpstreamCxOverflow = Counter "upstream_cx_overflow",
        UpstreamCxPoolOverflow = Counter "upstream_cx_pool_overflow",
        UpstreamCxPreconnectSkipped = Counter "upstream_cx_preconnect_skipped",
        UpstreamCxProtocolError = Counter "upstream_cx_protocol_error",
        UpstreamCxRxBytesBuffered = Gauge "upstream_cx_rx_bytes_buffered",
        UpstreamCxRxBytesTotal = Counter "upstream_cx_rx_bytes_total",
        UpstreamCxTotal = Counter "upstream_cx_total",
        UpstreamCxTxBytesBuffered = Gauge "upstream_cx_tx_bytes_buffered",
        UpstreamCxTxBytesTotal = Counter "upstream_cx_tx_bytes_total",
        UpstreamFlowControlBackedUpTotal = Counter "upstream_flow_control_backed_up_total",
        UpstreamFlowControlDrainedTotal = Counter "upstream_flow_control_drained_total",
        UpstreamFlowControlPausedReadingTotal = Counter "upstream_flow_control_paused_reading_total",
        UpstreamFlowControlResumedReadingTotal = Counter "upstream_flow_control_resumed_reading_total",
        UpstreamHttp3Broken = Counter "upstream_http3_broken",
        UpstreamInternalRedirectFailedTotal = Counter "upstream_internal_redirect_failed_total",
        UpstreamInternalRedirectSucceededTotal = Counter "upstream_internal_redirect_succeeded_total",
        UpstreamQueueOverloaded = Gauge "upstream_queue_overloaded",
        UpstreamRq0rtt = Counter "upstream_rq_0rtt",
        UpstreamRqActive = Gauge "upstream_rq_active",
        UpstreamRqActiveOverflow = Counter "upstream_rq_active_overflow",
        UpstreamRqCancelled = Counter "upstream_rq_cancelled",
        UpstreamRqMaintenanceMode = Counter "upstream_rq_maintenance_mode",
        UpstreamRqMaxDurationReached = Counter "upstream_rq_max_duration_reached",
        UpstreamRqPendingActive = Gauge "upstream_rq_pending_active",
        UpstreamRqPendingFailureEject = Counter "upstream_rq_pending_failure_eject",
        UpstreamRqPendingOverflow = Counter "upstream_rq_pending_overflow",
        UpstreamRqPendingTotal = Counter "upstream_rq_pending_total",
        UpstreamRqPerTryIdleTimeout = Counter "upstream_rq_per_try_idle_timeout",
        UpstreamRqPerTryTimeout = Counter "upstream_rq_per_try_timeout",
        UpstreamRqRetry = Counter "upstream_rq_retry",
        UpstreamRqRetryBackoffExponential = Counter "upstream_rq_retry_backoff_exponential",
        UpstreamRqRetryBackoffRatelimited = Counter "upstream_rq_retry_backoff_ratelimited",
        UpstreamRqRetryLimitExceeded = Counter "upstream_rq_retry_limit_exceeded",
        UpstreamRqRetryOverflow = Counter "upstream_rq_retry_overflow",
        UpstreamRqRetrySuccess = Counter "upstream_rq_retry_success",
        UpstreamRqRxReset = Counter "upstream_rq_rx_reset",
        UpstreamRqRxResetNoError = Counter "upstream_rq_rx_reset_no_error",
        UpstreamRqTimeout = Counter "upstream_rq_timeout",
        UpstreamRqTotal = Counter "upstream_rq_total",
        UpstreamRqTxReset = Counter "upstream_rq_tx_reset",
        Version = Gauge "version",
        WarmingState = Gauge "warming_state",
        CanaryUpstreamRqTime = Histogram "canary.upstream_rq_time" late,
        ExternalUpstreamRqTime = Histogram "external.upstream_rq_time" late,
        InternalUpstreamRqTime = Histogram "internal.upstream_rq_time" late,
        UpstreamCxConnectMs = Histogram "upstream_cx_connect_ms",
        UpstreamCxLengthMs = Histogram "upstream_cx_length_ms",
        UpstreamRqPerCx = Histogram "upstream_rq_per_cx",
        UpstreamRqTime = Histogram "upstream_rq_time" late,
    }
    codes { "" always, "external." late, "internal." late, "canary." late, "retry." late, }
}

stat_group! {
    /// `cluster.<name>.grpc.` and `cluster.<name>.grpc-web.`, with `<service>.<method>.` where methods are told apart
    GrpcStat {
        Status0 = Counter "0" late,
        Status1 = Counter "1" late,
        Status2 = Counter "2" late,
        Status3 = Counter "3" late,
        Status4 = Counter "4" late,
        Status5 = Counter "5" late,
        Status6 = Counter "6" late,
        Status7 = Counter "7" late,
        Status8 = Counter "8" late,
        Status9 = Counter "9" late,
        Status10 = Counter "10" late,
        Status11 = Counter "11" late,
        Status12 = Counter "12" late,
        Status13 = Counter "13" late,
        Status14 = Counter "14" late,
        Status15 = Counter "15" late,
        Status16 = Counter "16" late,
        Failure = Counter "failure" late,
        RequestMessageCount = Counter "request_message_count" late,
        ResponseMessageCount = Counter "response_message_count" late,
        Success = Counter "success" late,
        Total = Counter "total" late,
        UpstreamRqTime = Histogram "upstream_rq_time" late,
    }
}

impl GrpcStat {
    /// The counter of a `grpc-status`; `None` for what is none of gRPC's.
    pub fn of_status(status: &[u8]) -> Option<Self> {
        const STATUSES: [GrpcStat; 17] = [
            GrpcStat::Status0,
            GrpcStat::Status1,
            GrpcStat::Status2,
            GrpcStat::Status3,
            GrpcStat::Status4,
            GrpcStat::Status5,
            GrpcStat::Status6,
            GrpcStat::Status7,
            GrpcStat::Status8,
            GrpcStat::Status9,
            GrpcStat::Status10,
            GrpcStat::Status11,
            GrpcStat::Status12,
            GrpcStat::Status13,
            GrpcStat::Status14,
            GrpcStat::Status15,
            GrpcStat::Status16,
        ];
        STATUSES
            .into_iter()
            .find(|stat| Self::DEFINITIONS.get(stat.index()).is_some_and(|it| it.name.as_bytes() == status))
    }
}

stat_group! {
    /// One endpoint, as `/clusters` shows it; never in `/stats`.
    HostStat {
        CxActive = Gauge "cx_active",
        CxConnectFail = Counter "cx_connect_fail",
        CxTotal = Counter "cx_total",
        RqActive = Gauge "rq_active",
        RqError = Counter "rq_error",
        RqSuccess = Counter "rq_success",
        RqTimeout = Counter "rq_timeout",
        RqTotal = Counter "rq_total",
    }
}

stat_group! {
    /// `vhost.<name>.vcluster.<name>.`
    VirtualClusterStat {
        UpstreamRqRetry = Counter "upstream_rq_retry",
        UpstreamRqRetryLimitExceeded = Counter "upstream_rq_retry_limit_exceeded",
        UpstreamRqRetryOverflow = Counter "upstream_rq_retry_overflow",
        UpstreamRqRetrySuccess = Counter "upstream_rq_retry_success",
        UpstreamRqTimeout = Counter "upstream_rq_timeout",
        UpstreamRqTotal = Counter "upstream_rq_total",
        UpstreamRqTime = Histogram "upstream_rq_time" late,
    }
    codes { "" late, }
}

stat_group! {
    /// `vhost.<name>.route.<stat_prefix>.`
    RouteStat {
        UpstreamRqRetry = Counter "upstream_rq_retry",
        UpstreamRqRetryLimitExceeded = Counter "upstream_rq_retry_limit_exceeded",
        UpstreamRqRetryOverflow = Counter "upstream_rq_retry_overflow",
        UpstreamRqRetrySuccess = Counter "upstream_rq_retry_success",
        UpstreamRqTimeout = Counter "upstream_rq_timeout",
        UpstreamRqTotal = Counter "upstream_rq_total",
        UpstreamRqTime = Histogram "upstream_rq_time" late,
    }
    codes { "" late, }
}

stat_group! {
    /// `cluster_manager.`
    ClusterManagerStat {
        ActiveClusters = Gauge "active_clusters",
        ClusterAdded = Counter "cluster_added",
        ClusterModified = Counter "cluster_modified",
        ClusterRemoved = Counter "cluster_removed",
        ClusterUpdated = Counter "cluster_updated",
        ClusterUpdatedViaMerge = Counter "cluster_updated_via_merge",
        UpdateMergeCancelled = Counter "update_merge_cancelled",
        UpdateOutOfMergeWindow = Counter "update_out_of_merge_window",
        WarmingClusters = Gauge "warming_clusters",
    }
}

stat_group! {
    /// `control_plane.`
    ControlPlaneStat {
        ConnectedState = Gauge "connected_state",
        PendingRequests = Gauge "pending_requests",
        RateLimitEnforced = Counter "rate_limit_enforced",
    }
}

stat_group! {
    /// `cluster_manager.cds.`, `listener_manager.lds.`, `http.<stat_prefix>.rds.<name>.`, `sds.<name>.`: what discovery brought.
    UpdateStat {
        ConfigReload = Counter "config_reload" late,
        ConfigReloadTimeMs = Gauge "config_reload_time_ms" late,
        InitFetchTimeout = Counter "init_fetch_timeout",
        KeyRotationFailed = Counter "key_rotation_failed" late,
        UpdateAttempt = Counter "update_attempt",
        UpdateEmpty = Counter "update_empty" late,
        UpdateFailure = Counter "update_failure",
        UpdateRejected = Counter "update_rejected",
        UpdateSuccess = Counter "update_success",
        UpdateTime = Gauge "update_time",
        Version = Gauge "version",
        UpdateDuration = Histogram "update_duration",
    }
}

stat_group! {
    /// `listener_manager.`
    ListenerManagerStat {
        ListenerAdded = Counter "listener_added",
        ListenerCreateFailure = Counter "listener_create_failure",
        ListenerCreateSuccess = Counter "listener_create_success",
        ListenerInPlaceUpdated = Counter "listener_in_place_updated",
        ListenerModified = Counter "listener_modified",
        ListenerRemoved = Counter "listener_removed",
        ListenerStopped = Counter "listener_stopped",
        TotalFilterChainsDraining = Gauge "total_filter_chains_draining",
        TotalListenersActive = Gauge "total_listeners_active",
        TotalListenersDraining = Gauge "total_listeners_draining",
        TotalListenersWarming = Gauge "total_listeners_warming",
        WorkersPinned = Gauge "workers_pinned",
        WorkersStarted = Gauge "workers_started",
    }
}

stat_group! {
    /// `runtime.`
    RuntimeStat {
        AdminOverridesActive = Gauge "admin_overrides_active",
        DeprecatedFeatureSeenSinceProcessStart = Gauge "deprecated_feature_seen_since_process_start",
        DeprecatedFeatureUse = Counter "deprecated_feature_use",
        LoadError = Counter "load_error",
        LoadSuccess = Counter "load_success",
        NumKeys = Gauge "num_keys",
        NumLayers = Gauge "num_layers",
        OverrideDirExists = Counter "override_dir_exists",
        OverrideDirNotExists = Counter "override_dir_not_exists",
    }
}

stat_group! {
    /// `filesystem.`: access log files.
    FilesystemStat {
        FlushedByTimer = Counter "flushed_by_timer",
        ReopenFailed = Counter "reopen_failed",
        WriteBuffered = Counter "write_buffered",
        WriteCompleted = Counter "write_completed",
        WriteFailed = Counter "write_failed",
        WriteTotalBuffered = Gauge "write_total_buffered",
    }
}

stat_group! {
    /// `server.`
    ServerStat {
        CompilationSettingsFipsMode = Gauge "compilation_settings.fips_mode",
        Concurrency = Gauge "concurrency",
        DaysUntilFirstCertExpiring = Gauge "days_until_first_cert_expiring",
        DebugAssertionFailures = Counter "debug_assertion_failures",
        DroppedStatFlushes = Counter "dropped_stat_flushes",
        DynamicUnknownFields = Counter "dynamic_unknown_fields",
        EnvoyBugFailures = Counter "envoy_bug_failures",
        EnvoyNotifications = Counter "envoy_notifications",
        HotRestartEpoch = Gauge "hot_restart_epoch",
        HotRestartGeneration = Gauge "hot_restart_generation",
        Live = Gauge "live",
        MemoryAllocated = Gauge "memory_allocated",
        MemoryHeapSize = Gauge "memory_heap_size",
        MemoryPhysicalSize = Gauge "memory_physical_size",
        ParentConnections = Gauge "parent_connections",
        SecondsUntilFirstOcspResponseExpiring = Gauge "seconds_until_first_ocsp_response_expiring",
        State = Gauge "state",
        StaticUnknownFields = Counter "static_unknown_fields",
        TotalConnections = Gauge "total_connections",
        Uptime = Gauge "uptime",
        Version = Gauge "version",
        WipProtos = Counter "wip_protos",
        WorkerStuck = Counter "worker_stuck",
        InitializationTimeMs = Histogram "initialization_time_ms",
    }
}

stat_group! {
    /// `<thread>.`: how often a thread was late, for `main_thread`, `workers` and, after `server.`, each thread.
    WatchdogStat {
        WatchdogMegaMiss = Counter "watchdog_mega_miss",
        WatchdogMiss = Counter "watchdog_miss",
    }
}

stat_group! {
    /// `torus.`: what Envoy has no name for.
    TorusStat {
        AccessLogBytesDropped = Counter "access_log.bytes_dropped",
        AccessLogLinesDropped = Counter "access_log.lines_dropped",
        ConfigConvergenceUs = Gauge "config.convergence_us",
        ConfigVersion = Gauge "config.version",
        LoopLagMaxUs = Gauge "ring.loop_lag_max_us",
        RingBuffersLeased = Gauge "ring.buffers_leased",
        RingCancelled = Counter "ring.cancelled",
        RingCompletionOverflow = Counter "ring.completion_overflow",
        RingEnters = Counter "ring.enters",
        RingNoBuffers = Counter "ring.no_buffers",
        RingOperationsInFlight = Gauge "ring.operations_in_flight",
        RingSocketsOpen = Gauge "ring.sockets_open",
        RingSocketsParked = Gauge "ring.sockets_parked",
        RingTaskPanics = Counter "ring.task_panics",
        RingTurns = Counter "ring.turns",
        ConfigReceiptToLiveUs = Histogram "config.receipt_to_live_us",
        ConfigSwapUs = Histogram "config.swap_us",
    }
    by_worker {
        LoopLagMaxUs, RingBuffersLeased, RingCancelled, RingCompletionOverflow, RingEnters, RingNoBuffers,
        RingOperationsInFlight, RingSocketsOpen, RingSocketsParked, RingTaskPanics,
        RingTurns,
    }
}

/// Groups that count replies by the first digit of their status.
pub trait ResponseClass: StatGroup {
    /// The stat of `status`'s class, `None` outside of 100 to 599.
    fn response_class(status: u16) -> Option<Self>;
}

macro_rules! response_class {
    ($($group:ident)*) => {$(
        impl ResponseClass for $group {
            #[inline]
            fn response_class(status: u16) -> Option<Self> {
                match status / 100 {
                    1 => Some(Self::DownstreamRq1xx),
                    2 => Some(Self::DownstreamRq2xx),
                    3 => Some(Self::DownstreamRq3xx),
                    4 => Some(Self::DownstreamRq4xx),
                    5 => Some(Self::DownstreamRq5xx),
                    _ => None,
                }
            }
        }
    )*};
}

response_class!(HttpStat ListenerHttpStat);
