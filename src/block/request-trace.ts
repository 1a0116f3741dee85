import { toBlockError } from '../base/error.js';
import type { IoRequest } from '../base/io-request.js';
import type { TracePoint } from '../base/trace.js';
import type { BlockBackend } from './backend.js';

/** What a request is, at the points that tell of it. */
function words({ root, description }: BlockBackend, { kind, offset, lengthBytes }: IoRequest): string {
  const node = root ? `'${root.node.name}'` : 'none';
  return `${kind} node ${node} offset ${offset} bytes ${lengthBytes} by ${description}`;
}

export function traceRequest(point: TracePoint, backend: BlockBackend, request: IoRequest): void {
  point.say(words(backend, request));
}

export function traceDone(
  point: TracePoint,
  backend: BlockBackend,
  request: IoRequest,
  tookMs: number,
): void {
  point.say(`${words(backend, request)} ns ${Math.round(tookMs * 1e6)}`);
}

export function traceFailed(
  point: TracePoint,
  backend: BlockBackend,
  request: IoRequest,
  error: unknown,
): void {
  point.say(`${words(backend, request)} error ${toBlockError(error).message}`);
}
