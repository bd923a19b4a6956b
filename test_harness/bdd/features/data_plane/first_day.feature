Feature: The first day of an API consumer
  Somebody who has an address, a key and the contract finds out what there is to ask, asks, reads,
  makes the mistakes that everybody makes, and is told what to do about each.

  Background:
    Given a service whose model is called "assistant"

  @ORCH-3095 @ORCH-3096 @ORCH-2001 @OC-CTRL-2060 @OC-CTRL-2061
  Scenario: Look around, ask, read
    When acme asks for /v1/capabilities
    Then the answer is 200 with
      | api_version             | 1.0.0     |
      | engines.0.engine        | something |
      | engines.0.ctx_max       | something |
      | engines.0.model_refs    | something |
    When acme submits to "assistant"
      | task              | max_tokens |
      | Once upon a time, | 12         |
    Then "Once upon a time," is admitted
    And "Once upon a time," ends well

  @ORCH-2006 @ORCH-3014 @OC-CTRL-2010 @OC-CTRL-2030
  Scenario: A mistake is named, and the next try works
    When acme submits to "assistant"
      | task     | ctx      |
      | too wide | 99999999 |
    Then the answer is 400 with
      | code      | INVALID_PARAMS |
      | retriable | false          |
    And its message names ctx
    When acme submits to "assistant"
      | task    | max_tokens |
      | nothing | 0          |
    Then the answer is 400 with
      | code | INVALID_PARAMS |
    And its message names max_tokens
    When acme submits to "assistant"
      | task       | max_tokens |
      | like this? | 4          |
    Then "like this?" ends well

  @ORCH-3024
  Scenario: An answer that was lost on the way costs nothing to ask for again
    When acme submits to "assistant"
      | task                    | max_tokens |
      | The capital of Italy is | 6          |
    And "The capital of Italy is" is sent again
    Then "The capital of Italy is" is admitted
    And "The capital of Italy is" ends well
    When "The capital of Italy is" is sent again, with max_tokens 7
    Then the answer is 409 with
      | code      | INVALID_PARAMS |
      | retriable | false          |

  @ORCH-2003 @ORCH-3026 @OC-CTRL-2012
  Scenario: Somebody changes their mind
    When acme submits to "assistant"
      | task                    | max_tokens | ctx  |
      | Tell me everything about | 800        | 1024 |
    And "Tell me everything about" is read up to token 3 and cancelled
    Then the stream of "Tell me everything about" ends with
      | event    | end  |
      | canceled | true |
    And "Tell me everything about" reads the same again, from the start

  @ORCH-2004 @ORCH-2005
  Scenario: A conversation is counted, and forgotten on request
    When acme submits to "assistant"
      | task              | session | max_tokens |
      | Hello, my name is | diary   | 4          |
      | And yours is      | diary   | 4          |
    Then "Hello, my name is" and "And yours is" end well
    And session "diary" of acme shows
      | turns            | 2         |
      | ttl_ms_remaining | something |
    When acme deletes /v1/sessions/{And yours is.session}
    Then the answer is 204
    When acme asks for /v1/sessions/{And yours is.session}
    Then the answer is 404 with
      | code | INVALID_PARAMS |
