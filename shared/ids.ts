import { randomBytes } from 'node:crypto'

declare const shardId: unique symbol
declare const nodeId: unique symbol
declare const zone: unique symbol
declare const digest: unique symbol
declare const generation: unique symbol

/** One disk of a storage node. */
export type ShardId = string & { readonly [shardId]: true }
/** One storage node. */
export type NodeId = string & { readonly [nodeId]: true }
/** What fails together: a rack, a room, an availability zone. */
export type Zone = string & { readonly [zone]: true }
/** A blob's sha256 in 64 lower-case hex digits. Together with `Generation` the only text that becomes a file name (I40). */
export type Digest = string & { readonly [digest]: true }
/** One physical incarnation of a blob: 12 characters of 0-9a-z. */
export type Generation = string & { readonly [generation]: true }

const idPattern = /^[a-z0-9][a-z0-9.-]{0,62}$/
const digestPattern = /^[0-9a-f]{64}$/
const generationPattern = /^[0-9a-z]{12}$/
const generationAlphabet = '0123456789abcdefghijklmnopqrstuv'

/** Ids become folder names and header values: one short alphabet, and never a way out of a folder. */
const isId = (text: string): boolean => idPattern.test(text) && !text.includes('..')

/** The text as a shard id, or undefined when it is none. */
export function parseShardId(text: string): ShardId | undefined {
  return isId(text) ? (text as ShardId) : undefined
}

/** The text as a node id, or undefined when it is none. */
export function parseNodeId(text: string): NodeId | undefined {
  return isId(text) ? (text as NodeId) : undefined
}

/** The text as a zone name, or undefined when it is none. */
export function parseZone(text: string): Zone | undefined {
  return isId(text) ? (text as Zone) : undefined
}

/** Whether the text is 64 lower-case hex digits. */
export function isDigest(text: string): text is Digest {
  return digestPattern.test(text)
}

/** The text as a digest, or undefined when it is none. Upper-case hex is refused: one blob has one name. */
export function parseDigest(text: string): Digest | undefined {
  return isDigest(text) ? text : undefined
}

/** The text as a generation, or undefined when it is none. */
export function parseGeneration(text: string): Generation | undefined {
  return generationPattern.test(text) ? (text as Generation) : undefined
}

/**
 * A fresh generation: 60 random bits. Two incarnations of one digest collide with a chance of 2^-60, and only a
 * collision could let a late deletion hit a newer incarnation.
 */
export function newGeneration(): Generation {
  let text = ''
  for (const byte of randomBytes(12)) text += generationAlphabet.charAt(byte & 31)
  return text as Generation
}
