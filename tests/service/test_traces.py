"""OpenTelemetry spans, as a collector receives them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from mimicmotion_trt.service.transfer import Upload

from .hosting import hosted, script, until

service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")
messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(service.TraceServiceServicer):
    def __init__(self):
        self.spans = []

    def Export(self, request, context):  # noqa: N802
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return messages.ExportTraceServiceResponse()


def test_a_job_is_a_span_of_its_callers_trace_with_queue_engine_and_stages_inside():
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    service.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    upload = Upload(script(pause=0.01), b"a video", {"steps": 3}, request_id="mine")
    with hosted(traces=f"http://127.0.0.1:{port}") as host, grpc.insecure_channel(host.address) as channel:
        requests = (pb.AnimateRequest(upload=part) for part in upload)
        metadata = [("traceparent", f"00-{TRACE}-{SPAN}-01")]
        list(pb_grpc.AnimationServiceStub(channel).Animate(requests, metadata=metadata))
    until(lambda: len(collector.spans) >= 8)
    server.stop(0)
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"animation", "upload", "queue", "engine", "pose", "encode", "denoise", "decode"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    whole, engine = spans["animation"], spans["engine"]
    assert whole.parent_span_id.hex() == SPAN
    names = {attribute.key: attribute.value.string_value for attribute in whole.attributes}
    assert (names["mimicmotion.request_id"], names["mimicmotion.state"]) == ("mine", "succeeded")
    for name in ("upload", "queue", "engine"):
        assert spans[name].parent_span_id == whole.span_id
    for name in ("pose", "encode", "denoise", "decode"):
        assert spans[name].parent_span_id == engine.span_id
        assert spans[name].start_time_unix_nano >= engine.start_time_unix_nano
    assert spans["denoise"].end_time_unix_nano - spans["denoise"].start_time_unix_nano >= 25e6
