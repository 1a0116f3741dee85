import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import type { ObjectOptions } from '../../schema/objects.js';
import type { JsonValue } from '../../schema/types.js';
import { invalid, type ObjectType, parseProperty, type PropertyValues, type UserObject } from './object.js';
import { Secret, secretText } from './secret.js';
import { newThrottleGroup, ThrottleGroup } from './throttle-group.js';
import { OBJECT_TYPES } from './types.js';

/** QEMU's identifiers: of objects, jobs and devices. */
const IDENTIFIER = /^[A-Za-z][A-Za-z0-9._-]*$/;
const IDENTIFIER_HINT = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";

/** QAPI has a name for it by which QEMU itself finds no such type. */
const ALIASES: ReadonlyMap<string, string> = new Map([['authz-listfile', 'authz-list-file']]);

/** The objects of one engine, by id: what --object and object-add make. */
export class ObjectRegistry {
  /** What a machine has for its guest may be made, too. */
  isOfMachine = false;
  readonly #host: Host;
  readonly #objects = new Map<string, UserObject>();
  /** Throttle groups that are no objects. */
  readonly #groups = new Map<string, ThrottleGroup>();
  /** Ids of objects that are being made. */
  readonly #begun = new Set<string>();

  constructor(host: Host) {
    this.#host = host;
  }

  /** In the order in which they were made. */
  list(): UserObject[] {
    return [...this.#objects.values()];
  }

  find(id: string): UserObject | undefined {
    return this.#objects.get(id);
  }

  /** Errors: invalid, exists, not-found, those of reading files; in QEMU's words. */
  async add({ 'qom-type': name, id, ...given }: ObjectOptions): Promise<UserObject> {
    if (!IDENTIFIER.test(id))
      throw new BlockError('invalid', "Parameter 'id' expects an identifier", { hint: IDENTIFIER_HINT });
    const type = OBJECT_TYPES.find((candidate) => candidate.name === (ALIASES.get(name) ?? name));
    if (!type || (type.ofMachines && !this.isOfMachine)) throw invalid(`invalid object type: ${name}`);
    const values = propertyValues(type, given);
    if (this.#objects.has(id) || this.#begun.has(id)) {
      const text = `attempt to add duplicate property '${id}' to object (type 'container')`;
      throw new BlockError('exists', text);
    }
    this.#begun.add(id);
    try {
      type.check?.(values);
      if (type.isSingle && this.list().some((object) => object.type === type))
        throw invalid(`only one ${type.name} instance allowed`);
      const context = { host: this.#host, secret: (secretId: string) => this.secret(secretId) };
      const object = await type.make(id, values, context);
      this.#objects.set(id, object);
      return object;
    } finally {
      this.#begun.delete(id);
    }
  }

  /** Errors: not-found; busy while somebody uses it. */
  delete(id: string): void {
    const object = this.#objects.get(id);
    if (!object) throw new BlockError('not-found', `object '${id}' not found`);
    if (object.isInUse) throw new BlockError('busy', `object '${id}' is in use, can not be deleted`);
    this.#objects.delete(id);
    object.close();
  }

  /** The bytes of a secret. Errors: not-found; invalid when the object is none. */
  secret(id: string): Uint8Array {
    const object = this.#objects.get(id);
    if (!object) throw new BlockError('not-found', `No secret with id '${id}'`);
    if (!(object instanceof Secret)) throw invalid(`Object with id '${id}' is not a secret`);
    return object.bytes;
  }

  /** The same as text. Errors: those, and invalid where it is none. */
  secretText(id: string): string {
    return secretText(id, this.secret(id));
  }

  /** Errors: not-found. */
  throttleGroup(id: string | undefined): ThrottleGroup {
    const object = this.#objects.get(id ?? '');
    if (object instanceof ThrottleGroup) return object;
    throw new BlockError('not-found', `Throttle group '${id}' does not exist`);
  }

  /** That group, or one of that name that is there as long as it is used (of a drive's limits). */
  groupNamed(name: string): ThrottleGroup {
    const object = this.#objects.get(name) ?? this.#groups.get(name);
    if (object instanceof ThrottleGroup) return object;
    const group = newThrottleGroup(name, this.#host.clock);
    for (const [old, { isInUse }] of [...this.#groups]) if (!isInUse) this.#groups.delete(old);
    this.#groups.set(name, group);
    return group;
  }

  /** All that there are, objects or not. */
  throttleGroups(): ThrottleGroup[] {
    const objects = this.list().filter((object) => object instanceof ThrottleGroup);
    return [...objects, ...this.#groups.values()];
  }

  close(): void {
    for (const object of this.#objects.values()) object.close();
    this.#objects.clear();
  }
}

/** What was given, each checked by itself. */
function propertyValues(type: ObjectType, given: PropertyValues): PropertyValues {
  const values: PropertyValues = {};
  for (const [name, value] of Object.entries(given) as Array<[string, JsonValue | undefined]>)
    if (value !== undefined) values[name] = parseProperty(type, name, value);
  return values;
}
