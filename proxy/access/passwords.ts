/**
 * Passwords at rest: PHC strings, argon2id (19 MiB, 2 passes, 1 lane; 9 ms) or, where its binary cannot be loaded, scrypt (N = 2^15, r = 8,
 * p = 1; 32 MiB, 90 ms). Either is verified on every machine that can. Hashing is bounded: each run takes a thread of the pool that
 * files are read with, and tens of MiB.
 */
import { randomBytes, scrypt, timingSafeEqual } from 'node:crypto'
import { HoldfastError } from '../../shared/errors.ts'

/** Longer ones are refused unread: hashing time grows with them. */
export const passwordBytesMax = 1_024
/** For new passwords. */
export const passwordCharsMin = 8

const argon2Parameters = { memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const
const argon2Prefix = '$argon2id$v=19$m=19456,t=2,p=1$'
const scryptParameters = { log2N: 15, r: 8, p: 1 } as const
const scryptPattern = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{22,64})\$([A-Za-z0-9+/]{43,86})$/
/** The argon2id binding: what we use of `@node-rs/argon2`. Its default algorithm is argon2id. */
export interface Argon2 {
  hash(password: string, options: { memoryCost: number; timeCost: number; parallelism: number }): Promise<string>
  verify(hash: string, password: string): Promise<boolean>
}

export interface PasswordLimits {
  /** Hashes computed at once. */
  readonly runningMax: number
  /** Callers waiting for their turn; beyond, OVERLOADED. */
  readonly waitingMax: number
}

/** Two of the pool's four threads stay free for files; 128 waiting are 0.6 s of argon2. */
const defaultLimits: PasswordLimits = { runningMax: 2, waitingMax: 128 }

export class Passwords {
  readonly #argon2: Argon2 | undefined
  readonly #limits: PasswordLimits
  readonly #waiting: (() => void)[] = []
  #running = 0

  /** `argon2` undefined: new passwords are hashed with scrypt. */
  constructor(argon2: Argon2 | undefined, limits: PasswordLimits = defaultLimits) {
    this.#argon2 = argon2
    this.#limits = limits
  }

  /** What new passwords are hashed with. */
  get algorithm(): 'argon2id' | 'scrypt' {
    return this.#argon2 === undefined ? 'scrypt' : 'argon2id'
  }

  /** A PHC string with a fresh salt. Rejects with OVERLOADED. */
  hash(password: string): Promise<string> {
    const argon2 = this.#argon2
    return this.#bounded(() => (argon2 === undefined ? hashScrypt(password) : argon2.hash(password, argon2Parameters)))
  }

  /**
   * Is this the password? `phc` undefined (no such user) takes as long as a wrong password, and is false. Rejects with OVERLOADED, or
   * with INTERNAL when the string is damaged or needs a binary that is not here.
   */
  async verify(phc: string | undefined, password: string): Promise<boolean> {
    if (Buffer.byteLength(password) > passwordBytesMax) return false
    if (phc === undefined) {
      await this.hash(password)
      return false
    }
    if (phc.startsWith('$scrypt$')) return this.#bounded(() => verifyScrypt(phc, password))
    const argon2 = this.#argon2
    if (!phc.startsWith('$argon2id$') || argon2 === undefined) {
      throw new HoldfastError('INTERNAL', 'the password hash cannot be verified here', { algorithm: phc.split('$')[1] })
    }
    return this.#bounded(() => argon2.verify(phc, password))
  }

  /** Would `hash` make a string with other parameters today? */
  needsRehash(phc: string): boolean {
    const { log2N, r, p } = scryptParameters
    return !phc.startsWith(this.#argon2 === undefined ? `$scrypt$ln=${log2N},r=${r},p=${p}$` : argon2Prefix)
  }

  async #bounded<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#running >= this.#limits.runningMax) {
      if (this.#waiting.length >= this.#limits.waitingMax) {
        throw new HoldfastError('OVERLOADED', 'too many logins at once')
      }
      // Whoever leaves hands its place over, so `#running` does not change in between.
      await new Promise<void>(resolve => this.#waiting.push(resolve))
    } else {
      this.#running++
    }
    try {
      return await work()
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#running--
      else next()
    }
  }
}

/** Passwords with argon2id if its binary loads on this machine, else with scrypt. */
export async function loadPasswords(limits?: PasswordLimits): Promise<Passwords> {
  return new Passwords(await loadArgon2(), limits)
}

async function loadArgon2(): Promise<Argon2 | undefined> {
  try {
    return await import('@node-rs/argon2')
  } catch {
    // No binary for this platform: scrypt serves; `algorithm` tells.
    return undefined
  }
}

async function hashScrypt(password: string): Promise<string> {
  const { log2N, r, p } = scryptParameters
  const salt = randomBytes(16)
  const key = await deriveScrypt(password, salt, 32, log2N, r, p)
  return `$scrypt$ln=${log2N},r=${r},p=${p}$${unpadded(salt)}$${unpadded(key)}`
}

async function verifyScrypt(phc: string, password: string): Promise<boolean> {
  const match = scryptPattern.exec(phc)
  const [log2N, r, p] = [Number(match?.[1]), Number(match?.[2]), Number(match?.[3])]
  // The bounds keep a damaged or planted row from taking all memory: 2^17 * 16 * 128 bytes = 256 MiB.
  if (match === null || log2N < 1 || log2N > 17 || r < 1 || r > 16 || p < 1 || p > 4) {
    throw new HoldfastError('INTERNAL', 'the password hash is damaged')
  }
  const key = Buffer.from(match[5] ?? '', 'base64')
  return timingSafeEqual(
    key,
    await deriveScrypt(password, Buffer.from(match[4] ?? '', 'base64'), key.length, log2N, r, p),
  )
}

function deriveScrypt(
  password: string,
  salt: Buffer,
  bytes: number,
  log2N: number,
  r: number,
  p: number,
): Promise<Buffer> {
  const options = { N: 2 ** log2N, r, p, maxmem: 2 * 128 * 2 ** log2N * r }
  return new Promise((resolve, reject) => {
    scrypt(password, salt, bytes, options, (error, key) => (error === null ? resolve(key) : reject(error)))
  })
}

const unpadded = (bytes: Buffer): string => bytes.toString('base64').replace(/=+$/, '')
