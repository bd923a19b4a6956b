Feature: The same answer again
  An auditor asks where an answer came from, and whether it would come again. It does, byte for
  byte, and what it takes is on record.

  Background:
    Given a service whose model is called "assistant"

  @ORCH-3045
  Scenario: The same question, with the same seed and with another one
    When acme submits to "assistant"
      | task  | seed | max_tokens | sampling                      | prompt           |
      | today | 7    | 24         | {temperature: 0.9, top_k: 40} | Once upon a time |
    Then "today" ends well
    When acme submits to "assistant"
      | task      | seed | max_tokens | sampling                      | prompt           |
      | tomorrow  | 7    | 24         | {temperature: 0.9, top_k: 40} | Once upon a time |
      | some day  | 8    | 24         | {temperature: 0.9, top_k: 40} | Once upon a time |
    Then "tomorrow" and "some day" end well
    And "today" and "tomorrow" read the same
    And "today" and "some day" read differently

  @ORCH-3206 @ORCH-3045
  Scenario: The record of an answer is enough to have it again
    When acme submits to "assistant"
      | task    | prompt                    | max_tokens |
      | verdict | The court finds that      | 24         |
    Then "verdict" ends well
    When acme asks for /v1/tasks/{verdict}/determinism
    Then the answer is 200 with
      | seed           | 42        |
      | engine_version | something |
      | model_digest   | something |
      | sha256         | something |
    When acme sends the record of "verdict" again, as "replay"
    Then "replay" ends well
    And "verdict" and "replay" read the same

  @OC-CORE-1030
  Scenario: Another question is another key
    When acme submits to "assistant"
      | task | prompt               | max_tokens |
      | one  | The first law states | 16         |
      | two  | A recipe for bread:  | 16         |
    Then "one" and "two" end well
    And "one" and "two" read differently

  @ORCH-3206
  Scenario: What was not promised to come again has no record
    When acme submits to "assistant"
      | task  | determinism | max_tokens |
      | brief | best_effort | 4          |
    Then "brief" ends well
    When acme asks for /v1/tasks/{brief}/determinism
    Then the answer is 409 with
      | code | INVALID_PARAMS |
