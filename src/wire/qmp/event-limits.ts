import type { HostClock } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';

/** Events that may come in floods: of those that are about the same thing, one is told in so long. */
const LIMIT_MS = 1000;

/** By what tells apart what they are about: QEMU's. */
const LIMITED: Readonly<Record<string, string | undefined>> = {
  QUORUM_FAILURE: undefined,
  QUORUM_REPORT_BAD: 'node-name',
};

type Tell = (data: JsonObject) => void;

/** The first is told at once; of those that follow within a second, the last, when that is over. */
export class EventLimits {
  readonly #clock: HostClock;
  /** Of events that were told within the last second; the value is what is to be told next. */
  readonly #held = new Map<string, { data: JsonObject | undefined }>();

  constructor(clock: HostClock) {
    this.#clock = clock;
  }

  pass(event: string, data: JsonObject, tell: Tell): void {
    if (!Object.hasOwn(LIMITED, event)) return tell(data);
    const member = LIMITED[event];
    const key = member === undefined ? event : `${event} ${JSON.stringify(data[member])}`;
    const held = this.#held.get(key);
    if (held) held.data = data;
    else {
      tell(data);
      this.#hold(key, tell);
    }
  }

  #hold(key: string, tell: Tell): void {
    const held: { data: JsonObject | undefined } = { data: undefined };
    this.#held.set(key, held);
    this.#clock.setTimer(LIMIT_MS, () => {
      this.#held.delete(key);
      if (held.data === undefined) return;
      tell(held.data);
      this.#hold(key, tell);
    });
  }
}
