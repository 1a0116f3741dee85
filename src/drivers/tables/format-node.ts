import { BlockError, errnoError, errnoText, toBlockError } from '../../base/error.js';
import type {
  ChildIo,
  DriverContext,
  DriverInfo,
  DriverInstance,
  ImageCheck,
  MapDriver,
  PreparedChange,
  PreparedReopening,
  Reopening,
  RepairMode,
  Reservation,
  Settings,
} from '../../block/driver.js';
import type { Mapping } from '../../block/request.js';

/** An image as it was loaded from its files: another one after it was another process's for a while. */
export interface OpenedFormat {
  readonly lengthBytes: number;
  readonly map: MapDriver;
  readonly backing?: { filename: string; format?: string } | undefined;
  readonly canWriteZeroes?: boolean;
  /** Everything written before is durable. */
  flush(): Promise<void>;
  /** Durable, and nothing says any more that somebody writes it: the last that is done to it for a while. */
  end(): Promise<void>;
  info(): DriverInfo;
  check?(repair: RepairMode, say: (line: string) => void): Promise<ImageCheck>;
  truncate?(lengthBytes: number): Promise<void>;
  changeBacking?(filename: string | undefined, format: string | undefined): Promise<void>;
}

/** Loads the image; `mayWrite`: it is going to be written, so what its last user left behind is put right. */
export type LoadFormat<S extends Settings = Settings> = (
  driver: DriverContext,
  settings: S,
  mayWrite: boolean,
) => Promise<OpenedFormat>;

const NOTHING: PreparedChange = { commit: () => undefined, abort: () => undefined };

/** What is no more than an errno says which image it is of. */
export function namingFile(error: unknown, { filename }: DriverContext): unknown {
  if (!(error instanceof BlockError) || error.errno === undefined) return error;
  if (error.message !== errnoText(error.errno)) return error;
  return errnoError(error.errno, `Could not open '${filename}'`, { cause: error });
}

/** The same surroundings, but for that child. */
function withFile(context: DriverContext, file: ChildIo): DriverContext {
  return Object.create(context, {
    child: { value: (role: string) => (role === 'file' ? file : context.child(role)) },
  }) as DriverContext;
}

/** Maps through the image that is open now. */
class CurrentMap implements MapDriver {
  image: OpenedFormat;
  readonly readSpecial?: NonNullable<MapDriver['readSpecial']>;
  readonly writeSpecial?: NonNullable<MapDriver['writeSpecial']>;
  readonly writeCompressed?: NonNullable<MapDriver['writeCompressed']>;

  constructor(image: OpenedFormat) {
    this.image = image;
    const { map } = image;
    if (map.readSpecial) this.readSpecial = (...args) => this.#special('readSpecial')(...args);
    if (map.writeSpecial) this.writeSpecial = (...args) => this.#special('writeSpecial')(...args);
    if (map.writeCompressed) this.writeCompressed = (...args) => this.#special('writeCompressed')(...args);
  }

  get takesUncompressed(): boolean {
    return this.image.map.takesUncompressed === true;
  }

  #special<K extends 'readSpecial' | 'writeSpecial' | 'writeCompressed'>(key: K): NonNullable<MapDriver[K]> {
    const { map } = this.image;
    const method = map[key];
    if (!method) throw new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP' });
    return method.bind(map) as NonNullable<MapDriver[K]>;
  }

  get clusterBytes(): number {
    return this.image.map.clusterBytes;
  }

  get unitBytes(): number {
    return this.image.map.unitBytes;
  }

  get events(): ChildIo {
    return this.image.map.events;
  }

  get isPreallocated(): boolean {
    return this.image.map.isPreallocated === true;
  }

  get isMappingDurable(): boolean {
    return this.image.map.isMappingDurable === true;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    return this.image.map.tryMap(offset, lengthBytes, out);
  }

  map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    return this.image.map.map(offset, lengthBytes, out);
  }

  tryReserve(offset: number, lengthBytes: number): Reservation | undefined {
    return this.image.map.tryReserve?.(offset, lengthBytes);
  }

  reserve(offset: number, lengthBytes: number): Promise<Reservation> {
    return this.image.map.reserve(offset, lengthBytes);
  }

  zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    return this.image.map.zeroClusters(offset, lengthBytes, flags);
  }

  discardClusters(offset: number, lengthBytes: number): Promise<void> {
    return this.image.map.discardClusters(offset, lengthBytes);
  }
}

/** A node of a format that is loaded and written back as a whole: what is alike of all of them. */
export class FormatNode<S extends Settings = Settings> implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  /** What has a size in its header does not grow by being written. */
  readonly hasFixedLength = true;
  readonly map: CurrentMap;
  readonly check?: NonNullable<DriverInstance['check']>;
  readonly truncate?: NonNullable<DriverInstance['truncate']>;
  readonly changeBacking?: NonNullable<DriverInstance['changeBacking']>;
  #driver: DriverContext;
  readonly #load: LoadFormat<S>;
  #settings: S;

  private constructor(driver: DriverContext, settings: S, load: LoadFormat<S>, image: OpenedFormat) {
    this.#driver = driver;
    this.#settings = settings;
    this.#load = load;
    this.map = new CurrentMap(image);
    if (image.check) this.check = (repair, say) => this.#check(repair, say);
    if (image.truncate) this.truncate = async (lengthBytes) => this.map.image.truncate?.(lengthBytes);
    if (image.changeBacking)
      this.changeBacking = async (filename, format) => this.map.image.changeBacking?.(filename, format);
  }

  /** Errors: those of `load`. */
  static async open<S extends Settings>(
    driver: DriverContext,
    settings: S,
    load: LoadFormat<S>,
  ): Promise<FormatNode<S>> {
    try {
      return new FormatNode(driver, settings, load, await load(driver, settings, driver.mayWrite));
    } catch (error) {
      throw namingFile(error, driver);
    }
  }

  get lengthBytes(): number {
    return this.map.image.lengthBytes;
  }

  get backing(): { filename: string; format?: string } | undefined {
    return this.map.image.backing;
  }

  get canWriteZeroes(): boolean {
    return this.map.image.canWriteZeroes === true;
  }

  get readsZeroWhenNew(): boolean {
    return this.backing === undefined;
  }

  async flush(): Promise<void> {
    if (this.#driver.mayWrite) await this.map.image.flush();
  }

  async #end(): Promise<void> {
    if (this.#driver.mayWrite) await this.map.image.end();
  }

  async prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    if (!readOnly) return this.#loaded(this.#driver, this.#settings, true);
    await this.#end();
    return NOTHING;
  }

  async #loaded(driver: DriverContext, settings: S, mayWrite: boolean): Promise<PreparedReopening> {
    const image = await this.#load(driver, settings, mayWrite);
    const commit = (): void => {
      this.map.image = image;
      this.#driver = driver;
      this.#settings = settings;
    };
    return { lengthBytes: image.lengthBytes, commit, abort: () => undefined };
  }

  async prepareInactivation(): Promise<PreparedChange> {
    await this.#end();
    return NOTHING;
  }

  async prepareActivation(mayWrite: boolean): Promise<PreparedChange> {
    try {
      return await this.#loaded(this.#driver, this.#settings, mayWrite);
    } catch (error) {
      const { kind, message } = toBlockError(error);
      throw new BlockError(kind, `Could not reopen image: ${message}`, { cause: error });
    }
  }

  async prepareReopen(reopening: Reopening): Promise<PreparedReopening> {
    const file = reopening.newChild('file');
    const driver = file ? withFile(this.#driver, file) : this.#driver;
    await this.#end();
    return this.#loaded(driver, reopening.settings as unknown as S, reopening.mayWrite);
  }

  async #check(repair: RepairMode, say: (line: string) => void): Promise<ImageCheck> {
    await this.flush();
    const result = await this.map.image.check?.(repair, say);
    if (!result) throw new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP' });
    if (repair !== 'none') (await this.#loaded(this.#driver, this.#settings, this.#driver.mayWrite)).commit();
    return result;
  }

  info(): DriverInfo {
    return this.map.image.info();
  }

  close(): Promise<void> {
    return this.#end();
  }
}
