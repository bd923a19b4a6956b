@own-service
Feature: Taking engines out of service
  An operator drains a pool or one replica of it before maintenance. What runs goes on until the
  deadline; then it continues elsewhere, or is told to come back.

  Background:
    Given pool "busy" with 2 engines of 1 slot
    And pool "lonely" with 1 engine of 1 slot

  @ORCH-2101 @OC-CTRL-2002
  Scenario: What runs ends, nothing new begins, and resume lifts it
    Given the engines of "lonely" stop after 2 tokens of each task
    When acme submits to "lonely"
      | task    | max_tokens |
      | running | 4          |
    And the operator drains "lonely"
      | deadline_ms | 60000 |
    And acme submits to "lonely"
      | task     |
      | too late |
    Then "lonely" comes to show
      | draining | true     |
      | ready    | false    |
      | state    | Draining |
    And "too late" is turned away with
      | code      | POOL_UNREADY |
      | retriable | true         |
    When the engines of "lonely" go on
    Then "running" ends well
    And replica r0 of "lonely" comes to be Stopped
    When the operator resumes "lonely"
    Then "lonely" comes to show
      | draining | false |
      | ready    | true  |

  @ORCH-2101 @ORCH-3201
  Scenario: At the deadline a strict task goes on elsewhere, byte for byte
    Given the operator cordons r1 of "busy"
    And the engines of "busy" stop after 3 tokens of each task
    When acme submits to "busy"
      | task  | max_tokens |
      | story | 8          |
    And "story" runs on r0
    And the operator resumes r1 of "busy"
    And the operator drains r0 of "busy"
      | deadline_ms | 1 |
    And "story" runs on r1
    And the engines of "busy" go on
    Then "story" ends well
    When the operator resumes r0 of "busy"
    Then replica r0 of "busy" comes to be Ready

  @ORCH-2101
  Scenario: Nobody else can take it: it ends, and says that it may come back
    Given the engines of "lonely" stop after 2 tokens of each task
    When acme submits to "lonely"
      | task    | max_tokens |
      | running | 4          |
      | waiting | 4          |
    And the operator drains "lonely"
      | deadline_ms | 100 |
    Then the stream of "running" ends with
      | event     | error        |
      | code      | WORKER_RESET |
      | retriable | true         |
    And the stream of "waiting" ends with
      | event     | error        |
      | code      | POOL_UNREADY |
      | retriable | true         |
    When the operator resumes "lonely"
    Then replica r0 of "lonely" comes to be Ready

  @ORCH-2101
  Scenario: A cordoned replica ends what it has and gets nothing new
    Given the engines of "busy" stop after 2 tokens of each task
    When the operator cordons r0 of "busy"
    And acme submits to "busy"
      | task  | max_tokens |
      | first | 4          |
    And "first" runs on r1
    And the operator resumes r0 of "busy"
    And acme submits to "busy"
      | task   | max_tokens |
      | second | 4          |
    And "second" runs on r0
    And the engines of "busy" go on
    Then "first" and "second" end well
