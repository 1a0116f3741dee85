import { BlockError, errnoOf, errnoText } from '../base/error.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import type { BlockBackend } from '../block/backend.js';
import type { BlockStatus, IoRequest } from '../block/request.js';
import type { NbdTarget } from '../wire/nbd/target.js';
import type { BlockTarget } from '../wire/vhost-user/target.js';
import type { FrontEndProperties, GuestDevice, IoErrorEvent } from './device.js';
import type { RunState } from './run-state.js';

/** The client of the endpoint is the guest: its requests wait while the guest is stopped, and errors follow policy. */
export class DeviceTarget implements NbdTarget, BlockTarget {
  readonly #device: GuestDevice;
  readonly #properties: FrontEndProperties;
  readonly #runState: RunState;
  readonly #onIoError: (event: IoErrorEvent) => void;
  #isEnded = false;
  /** Requests that have failed, and are tried again when the guest goes on. */
  #failed = 0;

  constructor(
    device: GuestDevice,
    properties: FrontEndProperties,
    runState: RunState,
    onIoError: (event: IoErrorEvent) => void,
  ) {
    this.#device = device;
    this.#properties = properties;
    this.#runState = runState;
    this.#onIoError = onIoError;
  }

  get backend(): BlockBackend {
    return this.#device.backend;
  }

  get lengthBytes(): number {
    return this.#device.backend.lengthBytes;
  }

  get isPlainFile(): boolean {
    return this.#device.backend.isPlainFile;
  }

  /** A guest's driver may turn the write cache on and off. */
  get writethrough(): boolean {
    return this.#device.backend.writethrough;
  }

  set writethrough(isOn: boolean) {
    this.#device.backend.writethrough = isOn;
  }

  /** Who handles errors itself keeps what has failed, and asks for more, a flush, when it stops its guest. */
  #serves(): boolean {
    const { isServing, status } = this.#runState;
    return isServing || (status === 'io-error' && this.#properties.endpoint?.handlesErrors === true);
  }

  tryRun(request: IoRequest): boolean {
    if (!this.#serves()) return false;
    try {
      return this.#device.backend.tryRun(request);
    } catch {
      // The promise form meets the error again and follows the policy.
      return false;
    }
  }

  /** One that fails and is tried again, once the guest runs, is done anew from its beginning. */
  async run(request: IoRequest): Promise<void> {
    const { generation, signal } = request;
    for (;;) {
      if (!this.#serves()) await this.#runState.until(() => this.#isEnded || this.#serves(), signal);
      if (this.#isEnded) throw new BlockError('closed', 'The device is closed');
      request.assertIs(generation);
      request.signal = signal;
      try {
        return await this.#device.backend.run(request);
      } catch (error) {
        // A refusal of fast zeroes is an answer, and whoever is gone hears of no error.
        if (error instanceof BlockError && error.kind === 'unsupported') throw error;
        if (signal?.isCancelled === true) throw error;
        const action = this.#handle(request.kind === 'read' ? 'read' : 'write', error);
        if (action === 'report') throw error;
        // The buffer may hold what another request read.
        if (action === 'ignore')
          return request.kind === 'read' ? request.fillZero(0, request.lengthBytes) : undefined;
        await this.#untilGuestRuns(signal);
      }
    }
  }

  /** Also where a guest that does not run is served: there it would fail again, and again. */
  async #untilGuestRuns(signal: CancelSignal | undefined): Promise<void> {
    this.#failed++;
    this.#runState.wake();
    try {
      await this.#runState.until(() => this.#isEnded || this.#runState.isRunning, signal);
    } finally {
      this.#failed--;
    }
  }

  /** Resolves when a failure keeps what the guest has asked for waiting until it goes on. */
  whenHeld(signal: CancelSignal): Promise<void> {
    return this.#runState.until(() => this.#failed > 0 || this.#runState.status === 'io-error', signal);
  }

  status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return this.#device.backend.status(offset, lengthBytes);
  }

  /** The client is gone: its requests do not wait for the guest to run. */
  end(): void {
    this.#isEnded = true;
    this.#runState.wake();
  }

  #handle(operation: 'read' | 'write', error: unknown): 'ignore' | 'report' | 'stop' {
    if (this.#properties.endpoint?.handlesErrors === true) return 'report';
    const { readErrors, writeErrors } = this.#device.errorPolicies;
    const policy = operation === 'read' ? readErrors : writeErrors;
    const noSpace = errnoOf(error) === 'ENOSPC';
    const action = policy === 'enospc' ? (noSpace ? 'stop' : 'report') : policy;
    const device = this.#device;
    const event = { device, operation, action, noSpace, reason: errnoText(errnoOf(error)) };
    if (action === 'stop') device.stopFor(event, this.#runState, this.#onIoError);
    else this.#onIoError(event);
    return action;
  }
}
